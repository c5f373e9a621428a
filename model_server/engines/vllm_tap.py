"""The tap on AsyncLLM: a step's outputs go from its output processor to their sinks, all at once when the step is over.

AsyncLLM has no output per step. It takes a step's outputs in parts (128 in 0.32), lets the event loop run between them,
and puts each into its request's collector, which wakes a task of the request, which goes through a generator. Here
outputs are held between a step's first part and the stat logger's `record()`, which ends it, and go to sinks then, by
plain calls. The collector gets what ends a request: AsyncLLM.generate, which waits for it, stays vLLM's own, and with
it how requests are aborted and fail.

A token that is nothing but text and ids makes no RequestOutput, and counts in no statistics of vLLM's that nobody here
reads. What is more (the first, the last, logprobs) is vLLM's own, whole.

Imports nothing of vLLM; leans on the names of its OutputProcessor and RequestState (docs/adr/0155), as vllm_api does.
tests/e2e/test_vllm_engine.py is the contract test. Belongs to the event loop that the outputs come on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from model_server.engine import EngineOutput, Take


class Failed(Exception):
    """What AsyncLLM is told to end a request whose sink failed."""


class Sink:
    """What the output processor takes for a request's collector. `convert` makes an EngineOutput of a RequestOutput."""

    __slots__ = ("_collector", "_convert", "_open", "_take", "_tap", "begun", "failure")

    def __init__(self, tap: "StepTap", convert: Callable[[Any], EngineOutput], take: Take) -> None:
        self._tap = tap
        self._convert = convert
        self._take = take
        self._collector: Any = None
        self._open = True
        # Whether an output came, and what broke when one was taken.
        self.begun = False
        self.failure: Exception | None = None

    def stand_before(self, collector: Any) -> None:
        """`collector` is what AsyncLLM waits at."""
        self._collector = collector

    def put(self, output: Any) -> None:
        """See vLLM's RequestOutputCollector."""
        self._tap.put(self, output, None)

    def whole(self, output: Any) -> None:
        """A RequestOutput, or the error that ends the request."""
        if not isinstance(output, Exception):
            if not self._open:
                return
            try:
                converted = self._convert(output)
                self.begun = True
                self._take(converted)
            except Exception as error:  # It is one request's, and this is the engine's task.
                self._fail(error)
                return
            if not output.finished:
                return
        self._collector.put(output)

    def tokens(self, ids: Sequence[int], text: str) -> None:
        """Text and ids alone."""
        if self._open:
            try:
                self._take(EngineOutput(text, tuple(ids)))
            except Exception as error:  # As above.
                self._fail(error)

    def close(self) -> None:
        """Take no more."""
        self._open = False

    def _fail(self, error: Exception) -> None:
        self._open = False
        self.failure = error
        self._collector.put(Failed())


class StepTap:
    """Stands before an AsyncLLM's output processor. Make one before the first request."""

    def __init__(self, llm: Any) -> None:
        self._in_step = False
        # Each with its RequestOutput, or with ids and their text.
        self._held: list[tuple[Sink, Any, str | None]] = []
        # Of requests that are about to be added, by the ids that they come with.
        self._sinks: dict[str, Sink] = {}
        processor = llm.output_processor
        add_request, process_outputs = processor.add_request, processor.process_outputs
        propagate_error = processor.propagate_error

        def add(request: Any, *arguments: Any, **named: Any) -> Any:
            added = add_request(request, *arguments, **named)
            sink = self._sinks.get(request.external_req_id)
            if sink is not None:
                state = processor.request_states[request.request_id]
                sink.stand_before(state.queue)
                state.queue = sink
                if _plain(state):
                    state.make_request_output = self._making(state, sink)
            return added

        def process(*arguments: Any, **named: Any) -> Any:
            self._in_step = True
            return process_outputs(*arguments, **named)

        def fail(error: Exception) -> None:
            # A step that fails halfway has no end: what it brought before would wait for ever.
            self.hand_over()
            propagate_error(error)

        processor.add_request, processor.process_outputs, processor.propagate_error = add, process, fail
        if not getattr(processor, "tracing_enabled", True):
            _count_less(processor)

    @contextmanager
    def sink(self, request_id: str, convert: Callable[[Any], EngineOutput], take: Take) -> Iterator[Sink]:
        """For the request that is added under this id within the block; takes nothing behind it."""
        sink = self._sinks[request_id] = Sink(self, convert, take)
        try:
            yield sink
        finally:
            sink.close()
            del self._sinks[request_id]

    def hand_over(self) -> None:
        """The step is over: all get what it brought them."""
        self._in_step = False
        held, self._held = self._held, []
        for sink, output, text in held:
            if text is None:
                sink.whole(output)
            else:
                sink.tokens(output, text)

    def put(self, sink: Sink, output: Any, text: str | None) -> None:
        """An output for a request; outside of a step (aborts, errors) there is nothing to wait for."""
        self._held.append((sink, output, text))
        if not self._in_step:
            self.hand_over()

    def _making(self, state: Any, sink: Sink) -> Callable[..., Any]:
        """In the place of the state's `make_request_output`: what is a token and no more goes to the sink as it is."""
        make = state.make_request_output
        begun = False

        # By vLLM's names: an abort gives them.
        def made(new_token_ids: list[int], pooling_output: Any, finish_reason: Any, *more: Any, **named: Any) -> Any:
            nonlocal begun
            if finish_reason is not None or not begun:
                begun = True
                if finish_reason is not None:
                    # The state and this would hold each other.
                    del state.make_request_output
                return make(new_token_ids, pooling_output, finish_reason, *more, **named)
            self.put(sink, new_token_ids, state.detokenizer.get_next_output_text(False, True))
            return None

        return made


def _plain(state: Any) -> bool:
    """Whether a request's outputs are text and ids alone, a delta with each step."""
    logprobs = state.logprobs_processor
    return (
        state.output_kind.name == "DELTA"
        and state.stream_interval == 1
        and state.parent_req is None
        and state.detokenizer is not None
        and logprobs is not None
        and logprobs.logprobs is None
        and logprobs.prompt_logprobs is None
    )


def _count_less(processor: Any) -> None:
    """Leave out what vLLM counts of tokens after a request's first, for stat loggers and spans that are not here."""
    update = processor._update_stats_from_output

    def updated(state: Any, output: Any, *more: Any) -> None:
        if state.is_prefilling or output.events is not None:
            update(state, output, *more)

    processor._update_stats_from_output = updated
