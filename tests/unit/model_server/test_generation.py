"""One request's life against an engine whose every output the test decides."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest
from opentelemetry.context import Context

from discovery.endpoint import Endpoint
from model_server.direct import DirectStreams
from model_server.engine import (
    DeviceLost,
    EngineDead,
    EngineError,
    EngineInfo,
    EngineLoad,
    EngineOutput,
    EngineRefused,
    EngineRequest,
    Take,
)
from model_server.generation import Generator, cut_off_late
from model_server.handing import handed
from model_server.inflight import InFlight
from model_server.metrics import ServerMetrics
from model_server.out import writing
from model_server.tickets import TicketCheck
from stoker.v1 import generation_pb2, inference_pb2
from stoker_common.parts import only_deltas
from stoker_common.refusal import Code, Refusal, unavailable
from stoker_common.tickets import TicketKeys
from stoker_common.tracing import configure
from tests.fakes.inference import generation, token_ids
from tests.fakes.residency import hot, only

pytestmark = pytest.mark.unit

INFO = EngineInfo("fake", "1", "m", 100, 50, 4, 1000, 16, "cpu", 0, 0, "fake-1")
LENGTH = inference_pb2.FINISH_REASON_LENGTH
Script = Callable[[EngineRequest], AsyncGenerator[EngineOutput, None]]


class ScriptedEngine:
    """An Engine that runs a script for each request and remembers who asked and what is open."""

    def __init__(self, script: Script) -> None:
        self.info = INFO
        self.requests: list[EngineRequest] = []
        self.open = 0
        self._script = script

    async def start(self) -> None:
        return

    async def encode(self, asked: generation_pb2.Generation) -> list[int]:
        return list(asked.token_ids.ids) or [1, 2, 3]

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
        self.requests.append(request)
        self.open += 1
        try:
            async for output in self._script(request):
                yield output
        finally:
            self.open -= 1

    async def run(self, request: EngineRequest, take: Take) -> None:
        await handed(self.generate(request), take)

    def load(self) -> EngineLoad:
        return EngineLoad()

    async def check(self) -> None:
        return

    async def sleep(self) -> None:
        return

    def dropped(self) -> tuple[int, ...]:
        return ()

    async def wake(self) -> None:
        return

    async def add_adapter(self, name: str, source: str) -> None:
        return

    async def drop_adapter(self, name: str) -> None:
        return

    async def stop(self) -> None:
        return


class Served:
    """A Generator over a scripted engine."""

    def __init__(self, script: Script) -> None:
        self.engine = ScriptedEngine(script)
        self.metrics = ServerMetrics(["sim-model@2"])
        self.in_flight = InFlight()
        self.parts: list[inference_pb2.GenerateStreamResponse] = []
        self.held = hot("sim-model@2", self.engine, self.in_flight)
        self.meter = self.held.meter
        self.generator = Generator(
            models=only(self.held),
            metrics=self.metrics,
            endpoint=lambda: Endpoint("s", "h:1", "z", "e", "fake", ()),
            traces=configure("test", environ={}),
            tickets=TicketCheck(TicketKeys(), lambda: Endpoint("s", "h:1", "z", "e", "fake", ()), time.time),
            direct=DirectStreams(time.monotonic),
        )

    def put(self, part: bytes, tokens: int) -> None:
        self.parts.append(inference_pb2.GenerateStreamResponse.FromString(part))
        assert tokens == sum(len(delta.token_ids) for delta in self.parts[-1].deltas)

    def put_plain(self, part: bytes, tokens: int) -> None:
        assert only_deltas(part)
        self.put(part, tokens)

    async def written(self) -> None:
        return

    async def serve(
        self,
        asked: generation_pb2.Generation,
        remaining_s: float | None = None,
        *,
        write: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> None:
        """`write`: as a call does it."""
        if write is None:
            await self.generator.serve(asked, self, remaining_s=remaining_s, parent=Context())
            return
        async with writing(write) as out:
            await self.generator.serve(asked, out, remaining_s=remaining_s, parent=Context())

    def outcome(self, code: str) -> float | None:
        labels = {"model": "sim-model@2", "outcome": code}
        return self.metrics.registry.get_sample_value("stoker_server_requests_total", labels)

    @property
    def clean(self) -> bool:
        return self.engine.open == 0 and not self.meter.sequences and len(self.in_flight) == 0


async def two_tokens(request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
    yield EngineOutput("a", (1,), cached_tokens=2, queue_ms=4.0, prefill_ms=7.0)
    yield EngineOutput("b", (2,), finish_reason=LENGTH)


async def forever(request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
    yield EngineOutput("a", (1,))
    await asyncio.Event().wait()


def failing(error: Exception, *, after_first: bool = True) -> Script:
    async def script(request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
        if after_first:
            yield EngineOutput("a", (1,))
        raise error

    return script


async def test_first_and_last_part_tell_what_they_should() -> None:
    served = Served(two_tokens)
    await served.serve(generation(max_tokens=2))
    first, last = served.parts
    assert first.started.cached_tokens == last.finished.usage.cached_tokens == 2
    assert first.started.model == "sim-model@2"
    assert len(first.started.request_id) == 32
    assert last.finished.timings.queue.ToMilliseconds() == 4
    assert last.finished.timings.prefill.ToMilliseconds() == 7
    assert served.clean and served.outcome("OK") == 1.0


async def test_n_outputs_are_n_requests_of_one_with_seeds_of_their_own() -> None:
    served = Served(two_tokens)
    await served.serve(generation(max_tokens=2, n=3, seed=2**63 - 1))
    assert [token_ids(served.parts, index) for index in range(3)] == [[1, 2]] * 3
    assert [request.sampling.seed for request in served.engine.requests] == [2**63 - 1, -(2**63), -(2**63) + 1]
    assert not any(request.sampling.HasField("n") for request in served.engine.requests)
    assert len({request.request_id for request in served.engine.requests}) == 3
    assert sum(part.HasField("finished") for part in served.parts) == 1 and served.parts[-1].HasField("finished")


async def test_the_same_request_id_twice_is_two_requests_to_the_engine() -> None:
    served = Served(two_tokens)
    asked = generation(max_tokens=2)
    asked.request_id = "again"
    await served.serve(asked)
    await served.serve(asked)
    assert len({request.request_id for request in served.engine.requests}) == 2


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (EngineDead("gone"), Code.UNAVAILABLE, "ENGINE_DEAD"),
        (DeviceLost("off the bus"), Code.UNAVAILABLE, "DEVICE_LOST"),
        (EngineRefused("sampling.top_k", "no"), Code.INVALID_ARGUMENT, "INVALID_FIELD"),
        (EngineRefused("sampling.top_k", "no", unsupported=True), Code.UNIMPLEMENTED, "NOT_IMPLEMENTED"),
    ],
)
async def test_what_the_engine_raises_becomes_a_refusal(error: Exception, code: Code, reason: str, n: int) -> None:
    served = Served(failing(error))
    with pytest.raises(Refusal) as refused:
        await served.serve(generation(max_tokens=2, n=n))
    assert (refused.value.code, refused.value.reason) == (code, reason)
    if isinstance(error, EngineRefused):
        assert refused.value.field == "generation.sampling.top_k"
    assert served.clean and served.outcome(code.name) == 1.0


async def test_an_error_that_nobody_foresaw_is_counted_and_passed_on() -> None:
    served = Served(failing(EngineError("what is this")))
    with pytest.raises(EngineError):
        await served.serve(generation(max_tokens=2))
    assert served.clean and served.outcome("INTERNAL") == 1.0


async def test_an_end_without_a_finish_is_a_dead_engine_and_never_an_answer() -> None:
    async def cut_off(request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
        yield EngineOutput("a", (1,))

    served = Served(cut_off)
    with pytest.raises(Refusal, match="ENGINE_DEAD"):
        await served.serve(generation(max_tokens=5))
    assert not served.parts[-1].HasField("finished")


@pytest.mark.parametrize("n", [1, 3])
async def test_a_deadline_takes_it_off_the_engine(n: int) -> None:
    served = Served(forever)
    with pytest.raises(Refusal) as refused:
        await served.serve(generation(max_tokens=5, n=n), 0.02)
    assert refused.value.code is Code.DEADLINE_EXCEEDED
    assert served.clean and served.outcome("DEADLINE_EXCEEDED") == 1.0


@pytest.mark.parametrize("n", [1, 3])
async def test_a_reader_that_stopped_reading_meets_deadline_and_drain_and_is_not_the_engines_fault(n: int) -> None:
    async def stuck_write(_: bytes) -> None:
        await asyncio.Event().wait()

    served = Served(two_tokens)
    with pytest.raises(Refusal) as refused:
        await served.serve(generation(max_tokens=2, n=n), 0.02, write=stuck_write)
    assert refused.value.code is Code.DEADLINE_EXCEEDED
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(_refused(served.serve(generation(max_tokens=2, n=n), write=stuck_write)))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not served.meter.busy
        served.in_flight.fail(lambda: unavailable("leaving", reason="SERVER_DRAINING"))
    assert task.result().reason == "SERVER_DRAINING" and served.clean


async def _refused(work: object) -> Refusal:
    try:
        await work  # type: ignore[misc]
    except Refusal as refusal:
        return refusal
    raise AssertionError("it was served")


@pytest.mark.parametrize("n", [1, 3])
async def test_a_cancel_takes_it_off_the_engine(n: int) -> None:
    served = Served(forever)
    task = asyncio.ensure_future(served.serve(generation(max_tokens=5, n=n)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert served.engine.open == n
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert served.clean and served.outcome("CANCELLED") == 1.0


@pytest.mark.parametrize(
    ("ran_s", "remaining_s", "late"),
    [
        (5.0, None, False),
        (0.31, 0.3, True),
        (0.25, 0.3, True),
        (0.19, 0.3, False),
        (0.02, 0.03, True),
        (0.01, 0.03, False),
    ],
)
def test_a_client_cancels_by_its_own_clock_when_its_deadline_has_passed(
    ran_s: float, remaining_s: float | None, late: bool
) -> None:
    assert cut_off_late(ran_s, remaining_s) == late


async def test_a_write_that_fails_takes_it_off_the_engine() -> None:
    async def broken(_: bytes) -> None:
        raise ConnectionError

    for n in (1, 3):
        served = Served(forever)
        with pytest.raises(ConnectionError):
            await served.serve(generation(max_tokens=5, n=n), write=broken)
        assert served.clean


async def test_the_last_tokens_of_a_long_prompt_are_kept_where_that_is_asked() -> None:
    served = Served(two_tokens)
    asked = generation(max_tokens=2, truncate_prompt_tokens=2)
    asked.token_ids.ids.extend([7, 8, 9])
    await served.serve(asked)
    assert served.engine.requests[0].prompt_token_ids == (8, 9)


async def test_a_bare_name_finds_the_version_that_is_served() -> None:
    served = Served(two_tokens)
    await served.serve(generation(model="sim-model@2", max_tokens=2))
    await served.serve(generation(model="sim-model", max_tokens=2))
    with pytest.raises(Refusal, match="MODEL_NOT_FOUND"):
        await served.serve(generation(model="sim-model@1", max_tokens=2))
