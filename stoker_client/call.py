"""What every call has: a deadline, metadata, and one kind of exception."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from stoker_client.errors import StokerError
from stoker_common import status
from stoker_common.refusal import Code

Metadata = tuple[tuple[str, str | bytes], ...]


class Deadline:
    """A point in time that a call and its retries share; none with `timeout_s` None."""

    def __init__(self, timeout_s: float | None) -> None:
        self._at_s = None if timeout_s is None else time.monotonic() + timeout_s

    def left_s(self) -> float | None:
        """Seconds left, 0 when it has passed, None without a deadline."""
        return None if self._at_s is None else max(0.0, self._at_s - time.monotonic())


@contextmanager
def raising_stoker_error() -> Iterator[None]:
    """Turns what grpc raises into StokerError; a cancelled task stays a cancelled task."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise StokerError.of(status.from_rpc_error(error)) from error
    except grpc.aio.UsageError as error:
        raise StokerError(Code.CANCELLED, f"the client is closed: {error}", reason="CLIENT_CLOSED") from error
    except asyncio.CancelledError as error:
        # grpc raises it as well when the call was cancelled and the task was not: its channel was closed.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise StokerError(
            Code.CANCELLED, "the call was cancelled: its client was closed", reason="CLIENT_CLOSED"
        ) from error
