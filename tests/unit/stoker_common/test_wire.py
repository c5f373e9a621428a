"""A handler whose peer went: gRPC's own exceptions, alone or in a task group, are no error of ours."""

import asyncio
import logging
from typing import Any, cast

import grpc.aio
import pytest

from stoker_common import wire


class FakeContext:
    """A call without a deadline that remembers how it was ended."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None

    def time_remaining(self) -> None:
        """See grpc.aio.ServicerContext."""

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: object = ()) -> None:
        """See grpc.aio.ServicerContext."""
        self.code = code
        raise grpc.aio.AbortError


async def guarded(*failures: Exception) -> grpc.StatusCode | None:
    """The status that a handler's call ends with whose tasks fail so, None if it is told nothing."""
    context = FakeContext()

    async def fail(with_error: Exception) -> None:
        raise with_error

    try:
        async with wire.Guard(cast(Any, context), "Attach"), asyncio.TaskGroup() as tasks:
            for each in failures:
                tasks.create_task(fail(each))
    except grpc.aio.AbortError:
        assert context.code is not None
    return context.code


async def test_a_peer_that_goes_while_it_is_written_to_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        gone = grpc.aio.InternalError('Failed "execute_batch": (<SendMessageOperation>,)')
        assert await guarded(gone, gone) is None
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "the peer went while it was written to")
    ]


async def test_what_grpc_would_not_begin_and_what_fails_beside_it_are(caplog: pytest.LogCaptureFixture) -> None:
    refused = grpc.aio.InternalError("Failed grpc_call_start_batch: 8 with grpc_call_error value: 'TOO_MANY'")
    gone = grpc.aio.InternalError('Failed "execute_batch": (<SendMessageOperation>,)')
    assert await guarded(refused) is grpc.StatusCode.INTERNAL
    assert await guarded(gone, ValueError("ours")) is grpc.StatusCode.INTERNAL
    assert [record.message for record in caplog.records].count("unexpected error") == 2
