"""A step's outputs wait for its end, and for nothing else. tests/e2e/test_vllm_engine.py has vLLM's own processor."""

from types import SimpleNamespace
from typing import Any

import pytest

from model_server.engines.vllm_tap import StepTap

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
