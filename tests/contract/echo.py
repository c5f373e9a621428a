"""A service with methods of all four kinds, served by either HTTP/2 and asked over either: for contract suites."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from stoker_common import wire
from stoker_common.channel import Http2
from stoker_common.servers import server

LARGE = [("grpc.max_send_message_length", 256 << 20), ("grpc.max_receive_message_length", 256 << 20)]


@dataclass
class Service:
    """Methods of all four kinds, and what became of their calls."""

    running: int = 0
    cancelled: int = 0
    written: int = 0
    peers: list[str] = field(default_factory=list)
    remaining_s: list[float | None] = field(default_factory=list)
    # Calls whose callback came. (grpc's own contexts are not to be touched after the call: that crashes.)
    done: int = 0

    def handler(self) -> grpc.GenericRpcHandler:
        return wire.service(
            "test.Service",
            {
                "Twice": grpc.unary_unary_rpc_method_handler(self._twice),
                "Context": grpc.unary_unary_rpc_method_handler(self._context),
                "Abort": grpc.unary_unary_rpc_method_handler(self._abort),
                "AbortAsSet": grpc.unary_unary_rpc_method_handler(self._abort_as_set),
                "Fail": grpc.unary_unary_rpc_method_handler(self._fail),
                "Code": grpc.unary_unary_rpc_method_handler(self._code),
                "Large": grpc.unary_unary_rpc_method_handler(self._large),
                "Wait": grpc.unary_unary_rpc_method_handler(self._wait),
                "Count": grpc.unary_stream_rpc_method_handler(self._count),
                "Yield": grpc.unary_stream_rpc_method_handler(self._yield),
                "Breaks": grpc.unary_stream_rpc_method_handler(self._breaks),
                "Flood": grpc.unary_stream_rpc_method_handler(self._flood),
                "Hold": grpc.unary_stream_rpc_method_handler(self._hold),
                "Sum": grpc.stream_unary_rpc_method_handler(self._sum),
                "Echo": grpc.stream_stream_rpc_method_handler(self._echo),
                "Read": grpc.stream_stream_rpc_method_handler(self._read),
            },
        )

    async def _twice(self, request: bytes, _: wire.Context) -> bytes:
        return request * 2

    async def _context(self, request: bytes, context: wire.Context) -> bytes:
        self._look(context)
        await context.send_initial_metadata((("first", "1"), ("first-bin", b"\0\xff")))
        context.set_trailing_metadata((("last", "2"), ("last-bin", b"\xff\0")))
        told = [f"{key}={value!r}" for key, value in context.invocation_metadata() or () if key.startswith("x-")]
        return " ".join(sorted(told)).encode()

    async def _abort(self, _: bytes, context: wire.Context) -> bytes:
        context.set_trailing_metadata((("before", "1"),))
        await context.abort(grpc.StatusCode.NOT_FOUND, "none of it, 100 % sure: ü\n", (("why", "so"), ("b-bin", b"\1")))

    async def _abort_as_set(self, _: bytes, context: wire.Context) -> bytes:
        context.set_trailing_metadata((("before", "1"),))
        context.set_details("as it was set")
        await context.abort(grpc.StatusCode.NOT_FOUND)

    async def _fail(self, _: bytes, context: wire.Context) -> bytes:
        raise ValueError("what it says")

    async def _code(self, _: bytes, context: wire.Context) -> bytes:
        context.set_code(grpc.StatusCode.DATA_LOSS)
        context.set_details("lost")
        return b"unsent"

    async def _large(self, request: bytes, _: wire.Context) -> bytes:
        return bytes(int(request))

    async def _wait(self, _: bytes, context: wire.Context) -> bytes:
        self._look(context)
        with self._counted():
            await asyncio.Event().wait()
        return b""

    async def _count(self, request: bytes, context: wire.Context) -> None:
        for number in range(int(request)):
            await context.write(b"%d" % number)

    async def _yield(self, request: bytes, _: wire.Context) -> AsyncGenerator[bytes, None]:
        for number in range(int(request)):
            yield b"%d" % number

    async def _breaks(self, _: bytes, context: wire.Context) -> None:
        await context.write(b"one")
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    async def _flood(self, request: bytes, context: wire.Context) -> None:
        with self._counted():
            while True:
                await context.write(bytes(int(request)))
                self.written += 1

    async def _hold(self, _: bytes, context: wire.Context) -> None:
        with self._counted():
            await context.write(b"begun")
            await asyncio.Event().wait()

    async def _sum(self, requests: AsyncIterator[bytes], _: wire.Context) -> bytes:
        return b"%d" % sum([int(each) async for each in requests])

    async def _echo(self, requests: AsyncIterator[bytes], _: wire.Context) -> AsyncGenerator[bytes, None]:
        async for each in requests:
            yield each

    async def _read(self, _: object, context: wire.Context) -> None:
        with self._counted():
            while (data := await context.read()) is not grpc.aio.EOF:
                await context.write(data)

    def _look(self, context: wire.Context) -> None:
        self.peers.append(context.peer())
        self.remaining_s.append(context.time_remaining())
        context.add_done_callback(cast(Any, self._is_done))  # the stubs say that it is given nothing

    def _is_done(self, _: object) -> None:
        self.done += 1

    def _counted(self) -> "_Counted":
        return _Counted(self)


class _Counted:
    def __init__(self, service: Service) -> None:
        self._service = service

    def __enter__(self) -> None:
        self._service.running += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._service.running -= 1
        self._service.cancelled += isinstance(error, asyncio.CancelledError)


@dataclass
class Up:
    """A server that serves, and a channel to it."""

    service: Service
    server: grpc.aio.Server
    address: str
    channel: grpc.aio.Channel

    def unary(self, method: str) -> "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]":
        return self.channel.unary_unary(f"/test.Service/{method}")

    def stream(self, method: str) -> "grpc.aio.UnaryStreamMultiCallable[bytes, bytes]":
        return self.channel.unary_stream(f"/test.Service/{method}")

    def both(self, method: str) -> "grpc.aio.StreamStreamMultiCallable[bytes, bytes]":
        return self.channel.stream_stream(f"/test.Service/{method}")


@asynccontextmanager
async def up(
    kind: Http2, options: Any = LARGE, channel: Callable[[str], grpc.aio.Channel] | None = None
) -> AsyncIterator[Up]:
    """A server of this kind, and a channel to it: grpc's with these options, or what `channel` makes."""
    service, made = Service(), server(kind)
    made.add_generic_rpc_handlers((service.handler(),))
    address = f"127.0.0.1:{made.add_insecure_port('127.0.0.1:0')}"
    await made.start()
    try:
        async with channel(address) if channel else grpc.aio.insecure_channel(address, options=options) as asking:
            yield Up(service, made, address, asking)
    finally:
        await made.stop(None)


async def refused(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    """What the call is refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def twice(channel: grpc.aio.Channel) -> "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]":
    return channel.unary_unary("/test.Service/Twice")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def parts(call: Any) -> list[bytes]:
    return [part async for part in call]
