"""`python -m bench.channels`: what a call costs its client, by channel and by server: grpc's, and ours.

A server for each kind is a process of its own; each measurement is another, so that neither kind finds the other's
threads. CPU is the client process's own, all threads.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
import uvloop

from stoker_common import wire
from stoker_common.channel import Http2
from stoker_common.channels import channel
from stoker_common.servers import server

KINDS: tuple[Http2, ...] = ("grpc", "stoker")
ROUNDS, WARM, CALLS, MESSAGES = 3, 200, 3_000, 30_000
# As much as a token's part with its fields.
MESSAGE = bytes(60)


async def _once(request: bytes, _: wire.Context) -> bytes:
    return request


async def _count(request: bytes, context: wire.Context) -> None:
    for _ in range(int(request)):
        await context.write(MESSAGE)


async def _echo(_: object, context: wire.Context) -> None:
    while isinstance(data := await context.read(), bytes):
        await context.write(data)


async def serve(kind: Http2) -> None:
    """Until the process is ended; its port goes to standard output."""
    made = server(kind)
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Once": grpc.unary_unary_rpc_method_handler(_once),
        "Count": grpc.unary_stream_rpc_method_handler(_count),
        "Echo": grpc.stream_stream_rpc_method_handler(_echo),
    }
    made.add_generic_rpc_handlers((wire.service("bench.Service", handlers),))
    port = made.add_insecure_port("127.0.0.1:0")
    await made.start()
    print(port, flush=True)
    await made.wait_for_termination()


def _used_s() -> float:
    times = os.times()
    return times.user + times.system


async def ask(kind: Http2, port: int) -> list[float]:
    """CPU in µs: a unary call, a message there and back on a stream, a message of a stream that is read."""
    async with channel(kind, f"127.0.0.1:{port}") as made:
        once: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = made.unary_unary("/bench.Service/Once")
        for _ in range(WARM):
            await once(MESSAGE)
        began = _used_s()
        for _ in range(CALLS):
            await once(MESSAGE, timeout=5.0)
        unary = (_used_s() - began) / CALLS
        echo: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = made.stream_stream("/bench.Service/Echo")
        call = echo()
        began = _used_s()
        for _ in range(CALLS):
            await call.write(MESSAGE)
            await call.read()
        back = (_used_s() - began) / CALLS
        call.cancel()
        count: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = made.unary_stream("/bench.Service/Count")
        began = _used_s()
        async for _ in count(b"%d" % MESSAGES):
            pass
        return [each * 1e6 for each in (unary, back, (_used_s() - began) / MESSAGES)]


def _measured(kind: Http2, port: str) -> list[float]:
    argv = [sys.executable, "-m", "bench.channels", "ask", kind, port]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return [float(each) for each in said.split()]


def main(argv: Sequence[str]) -> None:
    """A table, or one of the processes that make it."""
    if argv[:1] == ["serve"]:
        uvloop.run(serve("stoker" if argv[1] == "stoker" else "grpc"))
    elif argv[:1] == ["ask"]:
        print(*uvloop.run(ask("stoker" if argv[1] == "stoker" else "grpc", int(argv[2]))))
    else:
        print("| channel, server | a unary request | a message there and back | a message that is read |")
        print("| --- | --- | --- | --- |")
        for serves in KINDS:
            serving = subprocess.Popen(
                [sys.executable, "-m", "bench.channels", "serve", serves], stdout=subprocess.PIPE, text=True
            )
            try:
                assert serving.stdout is not None
                port = serving.stdout.readline().strip()
                found: dict[Http2, list[list[float]]] = {kind: [] for kind in KINDS}
                for _ in range(ROUNDS):
                    for kind in KINDS:
                        found[kind].append(_measured(kind, port))
            finally:
                serving.kill()
                serving.wait()
            for kind in KINDS:
                unary, back, message = (statistics.median(each) for each in zip(*found[kind], strict=True))
                print(f"| {kind}, {serves} | {unary:.0f} µs | {back:.0f} µs | {message:.1f} µs |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
