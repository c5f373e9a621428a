"""Folds the parts of a streamed answer into a whole one."""

from stoker.v1.generation_pb2 import Generation
from stoker.v1.inference_pb2 import (
    Delta,
    Finished,
    GenerateResponse,
    GenerateStreamResponse,
    Output,
    Started,
)
from stoker.v1.joined_pb2 import JoinedDelta, JoinedParts


class _Growing:
    """One output so far. Text and ids are kept in pieces: joining them once is linear, adding them up is not."""

    def __init__(self, index: int) -> None:
        self._output = Output(index=index)
        self._texts: list[str] = []
        self._token_ids: list[int] = []

    def add(self, delta: Delta) -> None:
        self._texts.append(delta.text)
        self._token_ids.extend(delta.token_ids)
        if delta.logprobs:
            self._output.logprobs.extend(delta.logprobs)
        # What stopped an output comes with why it ended.
        if delta.finish_reason:
            self._ended(delta)

    def _ended(self, last: Delta) -> None:
        self._output.finish_reason = last.finish_reason
        stopped_by = last.WhichOneof("stopped_by")
        if stopped_by == "stop_string":
            self._output.stop_string = last.stop_string
        elif stopped_by == "stop_token_id":
            self._output.stop_token_id = last.stop_token_id

    def output(self) -> Output:
        output = Output(index=self._output.index, text="".join(self._texts), token_ids=self._token_ids)
        output.MergeFrom(self._output)
        return output


class Fold:
    """What the parts added so far amount to. How they were cut into parts makes no difference."""

    def __init__(self) -> None:
        self._started: Started | None = None
        self._finished: Finished | None = None
        self._outputs: dict[int, _Growing] = {}

    def add(self, part: GenerateStreamResponse) -> None:
        """Add the next part."""
        if part.HasField("started"):
            self._started = self._started or Started()
            self._started.MergeFrom(part.started)
        for delta in part.deltas:
            output = self._outputs.get(delta.index)
            if output is None:
                output = self._outputs[delta.index] = _Growing(delta.index)
            output.add(delta)
        if part.HasField("finished"):
            self._finished = self._finished or Finished()
            self._finished.MergeFrom(part.finished)

    def response(self) -> GenerateResponse:
        """The whole answer, outputs by index. Without `finished` until the last part was added."""
        outputs = [self._outputs[index].output() for index in sorted(self._outputs)]
        return GenerateResponse(started=self._started, outputs=outputs, finished=self._finished)


def folded(parts: bytes, asked: Generation) -> GenerateResponse:
    """All parts of an answer to what was asked, serialised and joined, as one answer.

    Of one output, which is nearly every request's, no delta is looked at: they are read as one, as
    protos/stoker/v1/joined.proto says.
    """
    if asked.sampling.n > 1:
        fold = Fold()
        fold.add(GenerateStreamResponse.FromString(parts))
        return fold.response()
    joined = JoinedParts.FromString(parts)
    response = GenerateResponse()
    if joined.HasField("started"):
        response.started.CopyFrom(joined.started)
    if joined.HasField("delta"):
        _fill(response.outputs.add(), joined.delta)
    if joined.HasField("finished"):
        response.finished.CopyFrom(joined.finished)
    return response


def _fill(output: Output, delta: JoinedDelta) -> None:
    output.text = "".join(delta.texts)
    output.token_ids.extend(delta.token_ids)
    if delta.logprobs:
        output.logprobs.extend(delta.logprobs)
    output.finish_reason = delta.finish_reason
    stopped_by = delta.WhichOneof("stopped_by")
    if stopped_by == "stop_string":
        output.stop_string = delta.stop_string
    elif stopped_by == "stop_token_id":
        output.stop_token_id = delta.stop_token_id
