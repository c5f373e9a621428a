"""A server's link, spoken to message by message: real gRPC, a simulated engine."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from model_server.engines.sim_settings import SimSettings
from stoker.v1 import worker_link_pb2
from stoker_common.refusal import Code
from stoker_common.status import from_rpc_status
from tests.fakes.fleet import FleetServer, running_server, server_settings
from tests.fakes.inference import channel_to, generation
from tests.fakes.until import until

pytestmark = pytest.mark.integration

SLOW = SimSettings(load_ms=0.0, step_base_ms=20.0, step_per_stream_ms=0.0)
Response = worker_link_pb2.AttachResponse


class Attached:
    """A router that says what the test wants, and keeps what it hears, with the time."""

    def __init__(self, fleet: FleetServer, call: Any) -> None:
        self.fleet = fleet
        self.heard: list[tuple[float, Response]] = []
        self._call = call

    async def say(self, **message: Any) -> None:
        await self._call.write(worker_link_pb2.AttachRequest(**message))

    async def start(self, stream_id: int, tokens: int) -> None:
        asked = generation(max_tokens=tokens, ignore_eos=True).SerializeToString()
        await self.say(start=worker_link_pb2.StartStream(stream_id=stream_id, generation=asked))

    async def read(self) -> None:
        while True:
            self.heard.append((asyncio.get_running_loop().time(), await self._call.read()))

    def outputs(self, stream_id: int) -> list[worker_link_pb2.StreamOutput]:
        return [each for _, message in self.heard for each in message.step.outputs if each.stream_id == stream_id]

    def said(self, which: Callable[[Response], bool]) -> bool:
        return any(which(message) for _, message in self.heard)


@asynccontextmanager
async def attached(sim: SimSettings = SLOW, **settings: Any) -> AsyncIterator[Attached]:
    async with running_server(server_settings(**settings), sim) as fleet, channel_to(fleet.server.address) as channel:
        call = channel.stream_stream(
            "/stoker.v1.WorkerLinkService/Attach",
            request_serializer=worker_link_pb2.AttachRequest.SerializeToString,
            response_deserializer=Response.FromString,
        )()
        made = Attached(fleet, call)
        await made.say(hello=worker_link_pb2.Hello(link_version=1, router="r"))
        reading = asyncio.ensure_future(made.read())
        try:
            await until(lambda: bool(made.heard))
            yield made
        finally:
            reading.cancel()
            await asyncio.wait((reading,))
            call.cancel()


async def test_what_begins_together_leaves_the_loop_turns_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async with attached() as link:
        links = link.fleet.server.links
        assert links is not None
        generator = links._generator
        serve, turn, begun = generator.serve, 0, Counter[int]()

        async def count() -> None:
            nonlocal turn
            while True:
                turn += 1
                await asyncio.sleep(0)

        async def served(*given: Any, **named: Any) -> None:
            begun[turn] += 1
            await serve(*given, **named)

        monkeypatch.setattr(generator, "serve", served)
        counting = asyncio.ensure_future(count())
        asked = generation(max_tokens=2, ignore_eos=True).SerializeToString()
        starts = [worker_link_pb2.StartStream(stream_id=stream_id, generation=asked) for stream_id in range(1, 65)]
        await link.say(start=starts[0], more=[worker_link_pb2.AttachRequest(start=start) for start in starts[1:]])
        await until(lambda: all(any(output.last for output in link.outputs(start.stream_id)) for start in starts))
        counting.cancel()
        assert begun.total() == 64 and max(begun.values()) <= 8


async def test_a_number_that_is_in_use_is_refused_and_its_stream_goes_on() -> None:
    async with attached() as link:
        await link.start(7, tokens=40)
        await until(lambda: bool(link.outputs(7)))
        await link.start(7, tokens=5)
        await until(lambda: link.said(lambda message: message.HasField("refused")))
        (refused,) = [message.refused for _, message in link.heard if message.HasField("refused")]
        refusal = from_rpc_status(refused.error.status)
        assert (refused.stream_id, refusal.code, refusal.reason) == (7, Code.INVALID_ARGUMENT, "STREAM_IN_USE")
        assert refusal.field == "start.stream_id"
        await until(lambda: any(output.last for output in link.outputs(7)))
        assert sum(output.tokens for output in link.outputs(7)) == 40
        assert not any(output.HasField("error") for output in link.outputs(7))
        assert len(link.fleet.server.in_flight) == 0


def waits(link: Attached) -> int:
    return link.fleet.server.models.meters.waiting_prompt_tokens


async def test_a_router_that_is_outbid_hears_first_what_waits_there() -> None:
    async with attached() as link:
        link.fleet.engine.faults.inject(stall=True)
        await link.start(1, tokens=5)  # and is not computed
        await until(lambda: waits(link) > 0)
        waiting = waits(link)
        asked = generation(max_tokens=5).SerializeToString()
        for stream_id, most in ((2, waiting - 1), (3, waiting)):
            bid = worker_link_pb2.Bid(prompt_tokens=9, most_waiting_prompt_tokens=most)
            await link.say(start=worker_link_pb2.StartStream(stream_id=stream_id, generation=asked, bid=bid))
        await until(lambda: bool(link.outputs(2)))
        refusal = from_rpc_status(link.outputs(2)[0].error.status)
        assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, "OUTBID")
        (step,) = [message.step for _, message in link.heard if any(o.stream_id == 2 for o in message.step.outputs)]
        assert step.load.waiting_prompt_tokens >= waiting
        link.fleet.engine.faults.inject(stall=False)
        await until(lambda: any(output.last for output in link.outputs(3)))
        assert not any(output.HasField("error") for output in link.outputs(3))


async def test_a_link_whose_streams_are_cancelled_all_the_time_still_says_that_it_is_alive() -> None:
    """Routers call a server dead after 2 s without a word."""
    async with attached() as link:
        link.fleet.engine.faults.inject(stall=True)
        began_s = asyncio.get_running_loop().time()
        for stream_id in range(1, 15):
            await link.start(stream_id, tokens=5)
            await until(lambda: len(link.fleet.server.in_flight) == 1)
            await asyncio.sleep(0.15)
            await link.say(cancel=worker_link_pb2.CancelStream(stream_id=stream_id))
            await until(lambda: len(link.fleet.server.in_flight) == 0)
        times = [began_s, *(at_s for at_s, _ in link.heard if at_s > began_s), asyncio.get_running_loop().time()]
        assert max(later - at_s for at_s, later in pairwise(times)) < 1.0
        link.fleet.engine.faults.inject(stall=False)


async def test_a_step_of_the_engine_is_one_message_whatever_its_size() -> None:
    """vLLM's own way would be two for more than 128 streams (docs/adr/0073)."""
    streams, tokens = 200, 60
    # Slow steps, so that a busy machine does not run two into one.
    many = SimSettings(load_ms=0.0, step_base_ms=100.0, step_per_stream_ms=0.0, max_streams=256)
    async with attached(many, stuck_after_seconds=60.0, probe_timeout_seconds=60.0) as link:
        engine = link.fleet.engine
        # Until all streams are there, however long that takes, none gets on.
        engine.faults.inject(stall=True)
        for stream_id in range(1, streams + 1):
            await link.start(stream_id, tokens)
        await until(lambda: len(link.fleet.server.in_flight) == streams, within_s=30.0)
        await until(lambda: engine.load().waiting >= streams)
        engine.faults.inject(stall=False)
        await until(lambda: all(any(output.last for output in link.outputs(i)) for i in (1, streams)), within_s=60.0)
        full = [message.step for _, message in link.heard if len(message.step.outputs) == streams]
        # A busy machine is not done with the first step, with which streams begin, before the next.
        of = {step.step for step in full} - {full[0].step}
        parts = [message.step for _, message in link.heard if message.step.step in of and message.step.outputs]
        # All but the last ones, with which streams go, and those that came so late that two were sent as one.
        assert len(of) >= 40
        # A message has the number of the step at which it was written: one that was late has the next one's, too.
        assert all(len(part.outputs) == streams for part in parts)
