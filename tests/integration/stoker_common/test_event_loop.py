"""stoker_common/event_loop.py with real gRPC: a busy loop hears of what gRPC has done as soon as it looks."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from stoker_common import event_loop

# Several events in each turn, more of them than fit into the socket, and a turn as long as under load.
_STREAMS = 16
_TURNS = 500
_TURN_S = 0.001
# A message goes by grpc's threads and back; without what is tested here some take 200 turns and more.
_MOST_TURNS = 100


async def _echoed(turns: int) -> tuple[int, event_loop.Loop]:
    """The most turns of a busy loop in which none of many streams got on, and the loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, event_loop.Loop)
    turn, latest, most, ended = 0, 0, 0, False

    async def echo(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        async for request in requests:
            await context.write(request)

    async def ask(call: Any) -> None:
        nonlocal latest, most
        while not ended:
            await call.write(b"-")
            await call.read()
            most, latest = max(most, turn - latest), turn

    server = grpc.aio.server()
    handler: Any = grpc.stream_stream_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Echo": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        calls: list[Any] = [channel.stream_stream("/test.Echo/Echo")() for _ in range(_STREAMS)]
        asking = [asyncio.ensure_future(ask(call)) for call in calls]
        while turn < turns:
            # The loop is busy, as a front end's at its limit is in each turn; gRPC's threads have the core meanwhile.
            time.sleep(_TURN_S)  # noqa: ASYNC251 - that is what is tested
            await asyncio.sleep(0)
            turn += 1
        ended = True
        await asyncio.gather(*asking)
        for call in calls:
            call.cancel()
    await server.stop(None)
    return most, loop


def test_a_busy_loop_hears_of_messages_within_a_few_turns() -> None:
    """gRPC alone has its poller stand still every so often, for 200 turns: no message goes out or comes in then."""
    most, loop = event_loop.run(_echoed(_TURNS))
    assert loop.wake_ups is not None, "gRPC's reader goes by another name: see stoker_common/event_loop.py"
    assert most <= _MOST_TURNS
