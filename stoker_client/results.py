"""What comes back: a whole answer, or a part of one. Both are thin, typed views of the API's messages."""

from collections.abc import Sequence
from dataclasses import dataclass

from stoker.v1 import inference_pb2


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `response` is the API's message; the properties are what most callers want of it."""

    response: inference_pb2.GenerateResponse

    @property
    def text(self) -> str:
        """The first output's text."""
        return self.outputs[0].text if self.outputs else ""

    @property
    def token_ids(self) -> Sequence[int]:
        """The first output's token ids."""
        return self.outputs[0].token_ids if self.outputs else ()

    @property
    def finish_reason(self) -> str:
        """Why the first output ended: `stop`, `length` or `repetition`."""
        return finish_word(self.outputs[0].finish_reason) if self.outputs else ""

    @property
    def outputs(self) -> Sequence[inference_pb2.Output]:
        """The outputs, one for each of `n`."""
        return self.response.outputs

    @property
    def server(self) -> str:
        """The server that started it."""
        return self.response.started.server

    @property
    def zone(self) -> str:
        """That server's zone."""
        return self.response.started.zone

    @property
    def model(self) -> str:
        """The model with its version that answered."""
        return self.response.started.model

    @property
    def request_id(self) -> str:
        """The request's id, as logs and traces have it."""
        return self.response.started.request_id

    @property
    def usage(self) -> inference_pb2.Usage:
        """Tokens in and out."""
        return self.response.finished.usage

    @property
    def timings(self) -> inference_pb2.Timings:
        """Where the time went."""
        return self.response.finished.timings

    @property
    def attempts(self) -> Sequence[inference_pb2.Attempt]:
        """Every server tried, in order; empty when a server was called itself."""
        return self.response.finished.attempts


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of an answer, as it came. `response` is the API's message."""

    response: inference_pb2.GenerateStreamResponse

    @property
    def text(self) -> str:
        """What the first output gained. May be empty."""
        return "".join(delta.text for delta in self.deltas if delta.index == 0)

    @property
    def token_ids(self) -> Sequence[int]:
        """The token ids that the first output gained."""
        return [token for delta in self.deltas if delta.index == 0 for token in delta.token_ids]

    @property
    def deltas(self) -> Sequence[inference_pb2.Delta]:
        """What every output gained, oldest first."""
        return self.response.deltas

    @property
    def started(self) -> inference_pb2.Started | None:
        """How the generation started: in the first part."""
        return self.response.started if self.response.HasField("started") else None

    @property
    def progress(self) -> inference_pb2.Progress | None:
        """What the request waits for, before the first token."""
        return self.response.progress if self.response.HasField("progress") else None

    @property
    def finished(self) -> inference_pb2.Finished | None:
        """How the generation ended: in the last part."""
        return self.response.finished if self.response.HasField("finished") else None


def finish_word(reason: inference_pb2.FinishReason.ValueType) -> str:
    """`stop`, `length` or `repetition`; empty while an output has not ended."""
    if reason == inference_pb2.FINISH_REASON_UNSPECIFIED:
        return ""
    return inference_pb2.FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()
