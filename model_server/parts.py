"""The API's messages, made from what the engine says."""

from collections.abc import Sequence
from datetime import timedelta

from google.protobuf import duration_pb2

from discovery.endpoint import Endpoint
from discovery.messages import load_to_proto
from model_server.engine import EngineOutput
from stoker.v1 import inference_pb2


def duration(seconds: float) -> duration_pb2.Duration:
    """`seconds` as a Duration; a clock that went backwards makes 0."""
    message = duration_pb2.Duration()
    message.FromTimedelta(timedelta(seconds=max(0.0, seconds)))
    return message


def started(
    endpoint: Endpoint,
    *,
    request_id: str,
    model: str,
    numerics_class: str,
    prompt_token_ids: Sequence[int],
    first: EngineOutput,
) -> inference_pb2.Started:
    """How a generation started, told with its first output."""
    return inference_pb2.Started(
        request_id=request_id,
        model=model,
        server=endpoint.server,
        zone=endpoint.zone,
        epoch=endpoint.epoch,
        prompt_tokens=len(prompt_token_ids),
        cached_tokens=first.cached_tokens,
        prompt_token_ids=prompt_token_ids,
        prompt_logprobs=first.prompt_logprobs,
        numerics_class=numerics_class,
        load=load_to_proto(endpoint.load),
    )


def add_delta(response: inference_pb2.GenerateStreamResponse, index: int, output: EngineOutput) -> None:
    """Append what one step added to output `index`. Runs once a token: sets only what is there."""
    delta = response.deltas.add(text=output.text, token_ids=output.token_ids)
    if index:
        delta.index = index
    if output.logprobs:
        delta.logprobs.extend(output.logprobs)
    if output.finish_reason:
        delta.finish_reason = output.finish_reason
        if output.stop_string is not None:
            delta.stop_string = output.stop_string
        elif output.stop_token_id is not None:
            delta.stop_token_id = output.stop_token_id
