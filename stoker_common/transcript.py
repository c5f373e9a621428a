"""What a client has received of an answer: enough to go on with it on another server, through another router.

Routers keep one for each stream, the SDK too, so that either may die.
"""

from dataclasses import dataclass, field

from stoker.v1 import endpoint_pb2, generation_pb2, inference_pb2

# Parts that are joined: some kilobytes.
_JOIN = 128
# A part that is larger is a long prompt's ids, or its logprobs: nothing to keep a second time.
_LARGE_BYTES = 16 << 10


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
    _outputs: dict[int, Received] = field(default_factory=dict)
    # Parts as they came: looked into when somebody asks, which for most streams is never.
    _unread: list[bytes] = field(default_factory=list)
    # Earlier ones, joined: joined parts are one part, and a list of small pieces costs more memory than they do.
    _joined: list[bytes] = field(default_factory=list)

    @classmethod
    def of(cls, state: generation_pb2.ResumeState) -> "Transcript":
        """What a client brings that has received a part of an answer through another router."""
        outputs = {
            output.index: Received(list(output.token_ids), output.text_bytes, output.finished)
            for output in state.outputs
        }
        return cls(state.model, tuple(state.prompt_token_ids), state.numerics_class, _outputs=outputs)

    def append(self, data: bytes) -> None:
        """The next part, serialised: its output is what is received. Runs once a token."""
        self._unread.append(data)
        if len(self._unread) >= _JOIN:
            self._joined.append(b"".join(self._unread))
            self._unread.clear()

    def add(self, part: inference_pb2.GenerateStreamResponse, data: bytes | None = None) -> None:
        """The next part; `data` is what it was parsed from, where that is at hand."""
        if not self.started and part.HasField("started"):
            self.started = True
            self.model = part.started.model
            self.prompt_token_ids = tuple(part.started.prompt_token_ids)
            # Of a continuation, the class of who began counts.
            self.numerics_class = self.numerics_class or part.started.numerics_class
        if data is None or len(data) > _LARGE_BYTES:
            self._read()
            self._receive(part)
        else:
            self.append(data)

    def _read(self) -> None:
        """Look into what was not looked into yet."""
        if self._unread or self._joined:
            whole = b"".join((*self._joined, *self._unread))
            self._joined.clear()
            self._unread.clear()
            self._receive(inference_pb2.GenerateStreamResponse.FromString(whole))

    def _receive(self, part: inference_pb2.GenerateStreamResponse) -> None:
        for delta in part.deltas:
            received = self._outputs.get(delta.index)
            if received is None:
                received = self._outputs[delta.index] = Received()
            received.token_ids.extend(delta.token_ids)
            text = delta.text
            # ASCII, which most text is, has as many bytes as characters.
            received.text_bytes += len(text) if text.isascii() else len(text.encode())
            if delta.finish_reason:
                received.finished = True

    @property
    def outputs(self) -> dict[int, Received]:
        """What was received of each output, by its index."""
        self._read()
        return self._outputs

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
