"""What a client has received of an answer: enough to go on with it on another server, through another router.

Routers keep one for each stream, the SDK too, so that either may die.
"""

from dataclasses import dataclass, field

from stoker.v1 import endpoint_pb2, generation_pb2, inference_pb2


@dataclass(slots=True)
class Received:
    """What was received of one output. `text_bytes` counts UTF-8."""

    token_ids: list[int] = field(default_factory=list)
    text_bytes: int = 0
    finished: bool = False


@dataclass(slots=True)
class Transcript:
    """Fed with every part of an answer, in order."""

    model: str = ""
    prompt_token_ids: tuple[int, ...] = ()
    numerics_class: str = ""
    started: bool = False
    outputs: dict[int, Received] = field(default_factory=dict)

    @classmethod
    def of(cls, state: generation_pb2.ResumeState) -> "Transcript":
        """What a client brings that has received a part of an answer through another router."""
        outputs = {
            output.index: Received(list(output.token_ids), output.text_bytes, output.finished)
            for output in state.outputs
        }
        return cls(state.model, tuple(state.prompt_token_ids), state.numerics_class, outputs=outputs)

    def add(self, part: inference_pb2.GenerateStreamResponse) -> None:
        """The next part. Runs once a token."""
        if not self.started and part.HasField("started"):
            self.started = True
            self.model = part.started.model
            self.prompt_token_ids = tuple(part.started.prompt_token_ids)
            # Of a continuation, the class of who began counts.
            self.numerics_class = self.numerics_class or part.started.numerics_class
        for delta in part.deltas:
            received = self.outputs.get(delta.index)
            if received is None:
                received = self.outputs[delta.index] = Received()
            received.token_ids.extend(delta.token_ids)
            text = delta.text
            # ASCII, which most text is, has as many bytes as characters.
            received.text_bytes += len(text) if text.isascii() else len(text.encode())
            if delta.finish_reason:
                received.finished = True

    @property
    def tokens(self) -> int:
        """Tokens received, over all outputs."""
        return sum(len(received.token_ids) for received in self.outputs.values())

    def resume_state(
        self, mode: endpoint_pb2.ResumeMode.ValueType = endpoint_pb2.RESUME_MODE_UNSPECIFIED
    ) -> generation_pb2.ResumeState:
        """What another server needs to go on."""
        return generation_pb2.ResumeState(
            model=self.model,
            prompt_token_ids=self.prompt_token_ids,
            outputs=[
                generation_pb2.ResumeOutput(
                    index=index,
                    token_ids=received.token_ids,
                    text_bytes=received.text_bytes,
                    finished=received.finished,
                )
                for index, received in sorted(self.outputs.items())
            ],
            numerics_class=self.numerics_class,
            mode=mode,
        )
