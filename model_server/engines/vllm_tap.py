"""The tap on AsyncLLM: what one step of the engine core brought is handed to its streams when the step is over.

AsyncLLM has no output per step. It takes a step's outputs in parts (128 in 0.32), lets the event
loop run between them, and puts each output into its request's collector at once, which wakes the reader. So the streams
of a large step would be woken in several turns of the loop, and the step would go up the link in several messages.
Here outputs are held between a step's first part and the stat logger's `record()`, which ends it, and go to the
collectors then: every reader wakes in the same turn. All else stays AsyncLLM's own: aborts, errors, merging.

Imports nothing of vLLM; leans on the names of its OutputProcessor, as vllm_api does. tests/e2e/test_vllm_engine.py is
the contract test. Belongs to the event loop that the outputs come on.
"""

from typing import Any


class StepTap:
    """Stands between an AsyncLLM's output processor and its requests' collectors. Make one before the first request."""

    def __init__(self, llm: Any) -> None:
        self._in_step = False
        self._held: list[tuple[Any, Any]] = []
        processor = llm.output_processor
        add_request, process_outputs = processor.add_request, processor.process_outputs
        propagate_error = processor.propagate_error

        def add(request: Any, *arguments: Any, **named: Any) -> Any:
            added = add_request(request, *arguments, **named)
            state = processor.request_states[request.request_id]
            state.queue = _Gate(state.queue, self)
            return added

        def process(*arguments: Any, **named: Any) -> Any:
            self._in_step = True
            return process_outputs(*arguments, **named)

        def fail(error: Exception) -> None:
            # A step that fails halfway has no end: what it brought before would wait for ever.
            self.hand_over()
            propagate_error(error)

        processor.add_request, processor.process_outputs, processor.propagate_error = add, process, fail

    def hand_over(self) -> None:
        """The step is over: wake all that got something in it."""
        self._in_step = False
        held, self._held = self._held, []
        for collector, output in held:
            collector.put(output)

    def put(self, collector: Any, output: Any) -> None:
        """An output for a request; outside of a step (aborts, errors) there is nothing to wait for."""
        if self._in_step:
            self._held.append((collector, output))
        else:
            collector.put(output)


class _Gate:
    """What the output processor takes for a request's collector."""

    __slots__ = ("_collector", "_tap")

    def __init__(self, collector: Any, tap: StepTap) -> None:
        self._collector = collector
        self._tap = tap

    def put(self, output: Any) -> None:
        self._tap.put(self._collector, output)
