"""A step's outputs wait for its end, and for nothing else. tests/e2e/test_vllm_engine.py has vLLM's own processor."""

import asyncio
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest

from model_server.engine import Engine, EngineOutput, EngineRequest, Take
from model_server.engines.vllm_tap import Failed, Sink, StepTap
from model_server.fanout import relay
from model_server.meter import Meter
from stoker.v1 import generation_pb2, inference_pb2, worker_link_pb2
from stoker_common.link.outbox import Outbox
from stoker_common.link.writer import LinkWriter
from tests.fakes.until import until

pytestmark = pytest.mark.unit

STOP, GOES_ON = inference_pb2.FINISH_REASON_STOP, inference_pb2.FINISH_REASON_UNSPECIFIED


class Collector:
    """What AsyncLLM.generate waits at."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.came = asyncio.Event()

    def put(self, output: Any) -> None:
        self.got.append(output)
        self.came.set()


class State:
    """As vLLM's RequestState: makes an output of a step's ids."""

    def __init__(self, queue: Collector, logprobs: object) -> None:
        self.queue = queue
        self.output_kind = SimpleNamespace(name="DELTA")
        self.stream_interval = 1
        self.parent_req = None
        self.is_prefilling = True
        self.detokenizer = SimpleNamespace(get_next_output_text=lambda finished, delta: f"text {finished} {delta}")
        self.logprobs_processor = SimpleNamespace(logprobs=logprobs, prompt_logprobs=None)
        self.made = 0

    def make_request_output(
        self, new_token_ids: list[int], pooling_output: None, finish_reason: str | None, stop_reason: None
    ) -> SimpleNamespace:
        self.made += 1
        return SimpleNamespace(ids=new_token_ids, finished=finish_reason is not None)


class Processor:
    """As vLLM's OutputProcessor: an output is put in when processed, and a finished request is forgotten."""

    def __init__(self, logprobs: object = None) -> None:
        self.tracing_enabled = False
        self.request_states: dict[str, State] = {}
        self.counted: list[str] = []
        self._logprobs = logprobs

    def add_request(self, request: Any, prompt: None, parent: None, index: int, queue: Collector) -> None:
        self.request_states[request.request_id] = State(queue, self._logprobs)

    def process_outputs(self, outputs: list[Any], timestamp: float) -> str:
        for output in outputs:
            state = self.request_states[output.request_id]
            self._update_stats_from_output(state, output, timestamp, None)
            state.is_prefilling = False
            if output.finish_reason:
                del self.request_states[output.request_id]
            made: SimpleNamespace | None = state.make_request_output(output.ids, None, output.finish_reason, None)
            if made is not None:
                state.queue.put(made)
        return f"processed {len(outputs)} at {timestamp}"

    def _update_stats_from_output(self, state: State, output: Any, timestamp: float, stats: None) -> None:
        self.counted.append(output.request_id)

    def propagate_error(self, error: Exception) -> None:
        for state in self.request_states.values():
            state.queue.put(error)


def out(request_id: str, *ids: int, end: str | None = None, events: object = None) -> Any:
    return SimpleNamespace(request_id=request_id, ids=list(ids), finish_reason=end, events=events)


def converted(output: Any) -> EngineOutput:
    return EngineOutput("whole", tuple(output.ids), finish_reason=STOP if output.finished else GOES_ON)


class Bench:
    """A tapped processor, and what each request's sink was handed."""

    def __init__(self, logprobs: object = None) -> None:
        self.processor = Processor(logprobs)
        self.tap = StepTap(SimpleNamespace(output_processor=self.processor))
        self.collectors: dict[str, Collector] = {}
        self.got: dict[str, list[EngineOutput]] = {}
        self.sinks: dict[str, Sink] = {}
        self._held = AsyncExitStack()

    def add(self, request_id: str, take: Take | None = None) -> None:
        got = self.got[request_id] = []
        self.sinks[request_id] = self._held.enter_context(self.tap.sink(request_id, converted, take or got.append))
        self.collectors[request_id] = Collector()
        asked = SimpleNamespace(request_id=f"{request_id}-of-vllm", external_req_id=request_id)
        # vLLM numbers requests itself.
        self.processor.add_request(asked, None, None, 0, self.collectors[request_id])
        self.processor.request_states[request_id] = self.processor.request_states.pop(asked.request_id)

    def ids(self, request_id: str) -> list[tuple[int, ...]]:
        return [output.token_ids for output in self.got[request_id]]


def test_parts_of_a_step_are_handed_over_together_when_it_is_over() -> None:
    bench = Bench()
    bench.add("one")
    bench.add("two")
    assert bench.processor.process_outputs([out("one", 1)], 1.0) == "processed 1 at 1.0"
    bench.processor.process_outputs([out("two", 2)], 1.0)
    assert (bench.got["one"], bench.got["two"]) == ([], [])
    bench.tap.hand_over()
    assert (bench.ids("one"), bench.ids("two")) == ([(1,)], [(2,)])
    bench.tap.hand_over()  # A step without outputs.
    assert (bench.ids("one"), bench.ids("two")) == ([(1,)], [(2,)])


def test_a_token_between_the_first_and_the_last_is_text_and_ids_and_makes_no_output_of_vllms() -> None:
    bench = Bench()
    bench.add("one")
    state = bench.processor.request_states["one"]
    for step in (out("one", 1), out("one", 2, 3), out("one"), out("one", 4, end="stop")):
        bench.processor.process_outputs([step], 1.0)
        bench.tap.hand_over()
    assert [output.text for output in bench.got["one"]] == ["whole", "text False True", "text False True", "whole"]
    assert bench.ids("one") == [(1,), (2, 3), (), (4,)]
    assert state.made == 2 and bench.got["one"][-1].finish_reason == STOP
    # What AsyncLLM hears of it is its end.
    assert [output.ids for output in bench.collectors["one"].got] == [[4]]
    assert "make_request_output" not in vars(state), "the state would hold itself"


def test_logprobs_come_by_vllms_own_outputs() -> None:
    bench = Bench(logprobs=[])
    bench.add("one")
    state = bench.processor.request_states["one"]
    for token_id in range(5):
        bench.processor.process_outputs([out("one", token_id)], 1.0)
    bench.tap.hand_over()
    assert state.made == 5 and [output.text for output in bench.got["one"]] == ["whole"] * 5


def test_vllm_counts_first_tokens_and_what_has_events() -> None:
    bench = Bench()
    bench.add("one")
    steps = [out("one", 1), out("one", 2), out("one", 3, events=["preempted"]), out("one", 4)]
    bench.processor.process_outputs(steps, 1.0)
    assert len(bench.processor.counted) == 2


def test_outside_of_a_step_nothing_waits() -> None:
    bench = Bench()
    bench.add("one")
    bench.processor.request_states["one"].queue.put(SimpleNamespace(ids=[7], finished=True))
    assert bench.ids("one") == [(7,)] and len(bench.collectors["one"].got) == 1


def test_a_step_that_fails_halfway_keeps_back_neither_output_nor_error() -> None:
    bench = Bench()
    bench.add("ended")
    bench.add("running")
    bench.processor.process_outputs([out("ended", 1, end="stop"), out("running", 2)], 1.0)
    death = RuntimeError("the engine died")
    bench.processor.propagate_error(death)
    assert (bench.ids("ended"), bench.ids("running")) == ([(1,)], [(2,)])
    assert bench.collectors["running"].got == [death]


@pytest.mark.parametrize("breaks_at", [1, 2, 3], ids=["first", "plain", "last"])
def test_what_a_sink_raises_ends_its_request_and_no_other(breaks_at: int) -> None:
    bench, error = Bench(), ValueError("no room")

    def take(output: EngineOutput) -> None:
        if output.token_ids == (breaks_at,):
            raise error

    bench.add("broken", take)
    bench.add("other")
    for token_id, end in ((1, None), (2, None), (3, "stop")):
        bench.processor.process_outputs([out("broken", token_id, end=end), out("other", token_id, end=end)], 1.0)
        bench.tap.hand_over()
    assert bench.sinks["broken"].failure is error
    assert [type(each) for each in bench.collectors["broken"].got] == [Failed]
    assert bench.ids("other") == [(1,), (2,), (3,)] and bench.sinks["other"].failure is None


def test_a_sink_that_is_closed_gets_nothing_more_of_a_step_that_is_under_way() -> None:
    bench = Bench()
    bench.add("one")
    bench.processor.process_outputs([out("one", 1), out("one", 2)], 1.0)
    bench.sinks["one"].close()
    bench.tap.hand_over()
    assert bench.got["one"] == []


class TappedEngine:
    """An engine over a tapped processor whose steps come in parts of 128, with the loop running in between."""

    def __init__(self, *, tapped: bool) -> None:
        self.bench = Bench()
        self._tapped = tapped

    async def run(self, request: EngineRequest, take: Take) -> None:
        self.bench.add(request.request_id, take)
        await self.bench.collectors[request.request_id].came.wait()

    async def step(self, end: str | None) -> None:
        outputs = [out(request_id, 1, end=end) for request_id in self.bench.got]
        for at in range(0, len(outputs), 128):
            self.bench.processor.process_outputs(outputs[at : at + 128], 1.0)
            if not self._tapped:
                self.bench.tap.hand_over()
            await asyncio.sleep(0)
        self.bench.tap.hand_over()


@pytest.mark.parametrize("tapped", [True, False], ids=["tapped", "not tapped"])
async def test_a_step_of_more_than_128_streams_goes_up_a_link_as_one_message(tapped: bool) -> None:
    """From the processor to what the link sends, through what serves a request in between."""
    engine, streams, meter = TappedEngine(tapped=tapped), 300, Meter()
    asked = generation_pb2.Sampling()
    sent: list[worker_link_pb2.Step] = []
    outbox = Outbox()

    async def send(data: bytes) -> None:
        sent.append(worker_link_pb2.AttachResponse.FromString(data).step)

    async def write() -> None:
        writer = LinkWriter(outbox, send, asyncio.get_running_loop().time)
        while True:
            await writer.turn()
            if not outbox.empty:
                await writer.send(outbox.take(1))

    async def serve(stream_id: int) -> None:
        def take(_: int, output: EngineOutput) -> None:
            outbox.put(stream_id, b"x", len(output.token_ids))

        request = EngineRequest(str(stream_id), (1,), asked, 11)
        await relay(cast(Engine, engine), {0: request}, {0: meter.begin(1)}, take)
        outbox.end(stream_id)

    async with asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(write())
        serving = [tasks.create_task(serve(stream_id)) for stream_id in range(streams)]
        await until(lambda: len(engine.bench.collectors) == streams)
        for end in [*[None] * 10, "stop"]:
            before = sum(len(step.outputs) for step in sent)
            await engine.step(end)
            await until(lambda before=before: sum(len(step.outputs) for step in sent) >= before + streams)  # type: ignore[misc]
        await asyncio.wait(serving)
        writing.cancel()
    assert all(len(step.outputs) == streams for step in sent) == tapped
    assert (len(sent) == 11) == tapped
