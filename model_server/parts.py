"""The API's messages, made from what the engine says."""

from collections.abc import Sequence
from datetime import timedelta

from google.protobuf import duration_pb2

from discovery.endpoint import Endpoint
from discovery.messages import load_to_proto
from model_server.engine import EngineOutput
from stoker.v1 import inference_pb2
from stoker_common.varint import varint


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


_BYTES = 2
_VARINT = 0
_DELTAS = bytes((inference_pb2.GenerateStreamResponse.DELTAS_FIELD_NUMBER << 3 | _BYTES,))
_INDEX = bytes((inference_pb2.Delta.INDEX_FIELD_NUMBER << 3 | _VARINT,))
_TEXT = bytes((inference_pb2.Delta.TEXT_FIELD_NUMBER << 3 | _BYTES,))
_TOKEN_IDS = bytes((inference_pb2.Delta.TOKEN_IDS_FIELD_NUMBER << 3 | _BYTES,))
# One delta of a short text and one id of two or three bytes, as most are. Their lengths add up to below 128.
_SHORT = 100
_OF_TWO = _DELTAS + b"%c" + _TEXT + b"%c%b" + _TOKEN_IDS + b"\x02%c%c"
_OF_THREE = _DELTAS + b"%c" + _TEXT + b"%c%b" + _TOKEN_IDS + b"\x03%c%c%c"


def plain_part(index: int, text: str, token_ids: Sequence[int]) -> bytes:
    """A serialised `GenerateStreamResponse` of one delta with text and ids alone, as `add_delta` and protobuf make it.

    Runs once a token, and takes a fifth of the time: no message is made.
    """
    data = text.encode()
    size = len(data)
    if 0 < size < _SHORT and not index and len(token_ids) == 1:
        (one,) = token_ids
        if 0x4000 <= one < 0x200000:
            return _OF_THREE % (size + 7, size, data, one & 0x7F | 0x80, one >> 7 & 0x7F | 0x80, one >> 14)
        if 0x80 <= one < 0x4000:
            return _OF_TWO % (size + 6, size, data, one & 0x7F | 0x80, one >> 7)
    delta = _INDEX + varint(index) if index else b""
    if data:
        delta += _TEXT + varint(len(data)) + data
    if token_ids:
        ids = varint(token_ids[0]) if len(token_ids) == 1 else b"".join(map(varint, token_ids))
        delta += _TOKEN_IDS + varint(len(ids)) + ids
    return _DELTAS + varint(len(delta)) + delta


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
