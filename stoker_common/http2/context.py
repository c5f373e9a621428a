"""What a handler is told of its call, and says of its end: what of grpc.aio's servicer context moves nothing."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grpc
import grpc.aio

from stoker_common.http2.request import Request

DoneCallback = Callable[[Any], None]


class Context(grpc.aio.ServicerContext[Any, Any]):
    """`peer` is who calls, as gRPC writes it. What is read and written is for the call that inherits this."""

    def __init__(self, request: Request, peer: str, loop: asyncio.AbstractEventLoop) -> None:
        self._request = request
        self._peer = peer
        self._loop = loop
        self._cancelled = False
        self._code = grpc.StatusCode.OK
        self._details = ""
        self._trailing: tuple[tuple[str, str | bytes], ...] = ()
        self._callbacks: list[DoneCallback] = []
        self._deadline_s = None if request.timeout_s is None else loop.time() + request.timeout_s

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """See grpc.aio.ServicerContext."""
        self._trailing = tuple(trailing_metadata)

    def trailing_metadata(self) -> Any:
        """See grpc.aio.ServicerContext."""
        return self._trailing

    def invocation_metadata(self) -> Any:
        """See grpc.aio.ServicerContext: pairs of key and value."""
        return self._request.metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        """See grpc.aio.ServicerContext."""
        self._code = code

    def code(self) -> grpc.StatusCode:
        """See grpc.aio.ServicerContext."""
        return self._code

    def set_details(self, details: str) -> None:
        """See grpc.aio.ServicerContext."""
        self._details = details

    def details(self) -> str:
        """See grpc.aio.ServicerContext."""
        return self._details

    def set_compression(self, compression: grpc.Compression) -> None:
        """See grpc.aio.ServicerContext. A wish, and answers go out as they are."""

    def disable_next_message_compression(self) -> None:
        """See grpc.aio.ServicerContext. None is compressed."""

    def peer(self) -> str:
        """See grpc.aio.ServicerContext."""
        return self._peer

    def peer_identities(self) -> Iterable[bytes] | None:
        """See grpc.aio.ServicerContext. Connections are in the clear: nobody has proved who they are."""
        return None

    def peer_identity_key(self) -> str | None:
        """See grpc.aio.ServicerContext."""
        return None

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """See grpc.aio.ServicerContext."""
        return {}

    def time_remaining(self) -> Any:
        """See grpc.aio.ServicerContext: seconds, None without a deadline."""
        return None if self._deadline_s is None else max(0.0, self._deadline_s - self._loop.time())

    def add_done_callback(self, callback: DoneCallback) -> None:
        """See grpc.aio.ServicerContext."""
        self._callbacks.append(callback)

    def cancelled(self) -> bool:
        """See grpc.aio.ServicerContext."""
        return self._cancelled
