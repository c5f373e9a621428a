"""A step's outputs wait for its end, and for nothing else. tests/e2e/test_vllm_engine.py has vLLM's own processor."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, cast

import pytest

from model_server.engine import Engine, EngineOutput, EngineRequest
from model_server.engines.vllm_tap import StepTap
from model_server.fanout import relay
from model_server.meter import Meter
from stoker.v1 import generation_pb2, inference_pb2, worker_link_pb2
from stoker_common.link.outbox import Outbox
from stoker_common.link.writer import LinkWriter
from tests.fakes.until import until

pytestmark = pytest.mark.unit


class Collector:
    """Keeps what is put in."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def put(self, output: Any) -> None:
        self.got.append(output)


class Processor:
    """As vLLM's OutputProcessor: an output is put in when processed, and a finished request is forgotten."""

    def __init__(self) -> None:
        self.request_states: dict[str, Any] = {}

    def add_request(self, request: Any, prompt: None, parent: None, index: int, queue: Collector) -> None:
        self.request_states[request.request_id] = SimpleNamespace(queue=queue)

    def process_outputs(self, outputs: list[tuple[str, str]], timestamp: float) -> str:
        for request_id, output in outputs:
            state = self.request_states[request_id]
            if output == "end":
                del self.request_states[request_id]
            state.queue.put(output)
        return f"processed {len(outputs)} at {timestamp}"

    def propagate_error(self, error: Exception) -> None:
        for state in self.request_states.values():
            state.queue.put(error)


@pytest.fixture
def processor() -> Processor:
    return Processor()


@pytest.fixture
def tap(processor: Processor) -> StepTap:
    return StepTap(SimpleNamespace(output_processor=processor))


def added(processor: Processor, request_id: str) -> Collector:
    collector = Collector()
    processor.add_request(SimpleNamespace(request_id=request_id), None, None, 0, collector)
    return collector


def test_parts_of_a_step_are_handed_over_together_when_it_is_over(processor: Processor, tap: StepTap) -> None:
    one, two = added(processor, "one"), added(processor, "two")
    assert processor.process_outputs([("one", "a")], 1.0) == "processed 1 at 1.0"
    processor.process_outputs([("two", "b")], 1.0)
    assert (one.got, two.got) == ([], [])
    tap.hand_over()
    assert (one.got, two.got) == (["a"], ["b"])
    tap.hand_over()  # A step without outputs.
    assert (one.got, two.got) == (["a"], ["b"])


def test_outputs_of_one_request_keep_their_order(processor: Processor, tap: StepTap) -> None:
    one = added(processor, "one")
    processor.process_outputs([("one", "a"), ("one", "end")], 1.0)
    tap.hand_over()
    assert one.got == ["a", "end"]


def test_outside_of_a_step_nothing_waits(processor: Processor, tap: StepTap) -> None:
    one = added(processor, "one")
    processor.request_states["one"].queue.put("aborted")
    assert one.got == ["aborted"]
    processor.process_outputs([("one", "a")], 1.0)
    tap.hand_over()
    processor.request_states["one"].queue.put("aborted again")
    assert one.got == ["aborted", "a", "aborted again"]


def test_a_step_that_fails_halfway_keeps_back_neither_output_nor_error(processor: Processor, tap: StepTap) -> None:
    ended, running = added(processor, "ended"), added(processor, "running")
    processor.process_outputs([("ended", "end"), ("running", "a")], 1.0)
    death = RuntimeError("the engine died")
    processor.propagate_error(death)
    assert (ended.got, running.got) == (["end"], ["a", death])


STOP, GOES_ON = inference_pb2.FINISH_REASON_STOP, inference_pb2.FINISH_REASON_UNSPECIFIED


class Readable(Collector):
    """A collector that is read, as AsyncLLM.generate does: it waits for an event and takes what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.ready = asyncio.Event()

    def put(self, output: Any) -> None:
        super().put(output)
        self.ready.set()

    async def outputs(self) -> AsyncGenerator[Any, None]:
        while True:
            await self.ready.wait()
            self.ready.clear()
            got, self.got = self.got, []
            for output in got:
                yield output
                if output == "end":
                    return


class TappedEngine:
    """An engine over a tapped processor whose steps come in parts of 128, with the loop running in between."""

    def __init__(self, *, tapped: bool) -> None:
        self.processor = Processor()
        self.tap = StepTap(SimpleNamespace(output_processor=self.processor)) if tapped else None
        self.collectors: dict[str, Readable] = {}

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
        collector = self.collectors[request.request_id] = Readable()
        asked = SimpleNamespace(request_id=request.request_id)
        self.processor.add_request(asked, None, None, 0, collector)
        async with aclosing(collector.outputs()) as outputs:
            async for output in outputs:
                yield EngineOutput("t", (1,), finish_reason=STOP if output == "end" else GOES_ON)

    async def step(self, output: str) -> None:
        outputs = [(request_id, output) for request_id in self.collectors]
        for at in range(0, len(outputs), 128):
            self.processor.process_outputs(outputs[at : at + 128], 1.0)
            await asyncio.sleep(0)
        if self.tap is not None:
            self.tap.hand_over()


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
        async def emit(batch: Sequence[tuple[int, EngineOutput]]) -> None:
            outbox.put(stream_id, b"x", len(batch))

        request = EngineRequest(str(stream_id), (1,), asked, 11)
        await relay(cast(Engine, engine), {0: request}, {0: meter.begin(1)}, emit)
        outbox.end(stream_id)

    async with asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(write())
        serving = [tasks.create_task(serve(stream_id)) for stream_id in range(streams)]
        await until(lambda: len(engine.collectors) == streams)
        for output in [*"abcdefghij", "end"]:
            before = sum(len(step.outputs) for step in sent)
            await engine.step(output)
            await until(lambda before=before: sum(len(step.outputs) for step in sent) == before + streams)  # type: ignore[misc]
        await asyncio.wait(serving)
        writing.cancel()
    assert all(len(step.outputs) == streams for step in sent) == tapped
    assert (len(sent) == 11) == tapped
