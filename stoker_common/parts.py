"""What a serialised part of an answer holds, told from its bytes: most parts of a relayed stream are never parsed."""

from collections.abc import Sequence

from stoker.v1 import inference_pb2

_BYTES = 2
_DELTAS = inference_pb2.GenerateStreamResponse.DELTAS_FIELD_NUMBER << 3 | _BYTES
_PROGRESS = inference_pb2.GenerateStreamResponse.PROGRESS_FIELD_NUMBER << 3 | _BYTES


def only_deltas(data: bytes) -> bool:
    """Whether a serialised `GenerateStreamResponse` is output and nothing else. False, too, for what is none at all.

    Reads tags and lengths; a token's part, of one delta under 128 bytes, in one look.
    """
    size = len(data)
    if size < 2:
        return False
    if data[0] == _DELTAS and data[1] == size - 2 and size < 130:
        return True
    at = 0
    while at < size:
        if data[at] != _DELTAS:
            return False
        length = shift = 0
        while True:
            at += 1
            if at >= size or shift > 63:
                return False
            length |= (data[at] & 0x7F) << shift
            shift += 7
            if data[at] < 0x80:
                break
        at += 1 + length
    return at == size


def tokens_in(data: bytes) -> int:
    """The tokens in a serialised part. Parses it."""
    return sum(len(delta.token_ids) for delta in inference_pb2.GenerateStreamResponse.FromString(data).deltas)


def joined(parts: Sequence[bytes]) -> bytes:
    """Serialised parts as one: parsed, joined parts merge, which is what is meant of all but `progress`.

    Of several the latest counts. Merged, what it does not have would be the earlier ones': 5.2 s to go and then 0.4 s
    would be 5.4 s, since no zero is written.
    """
    if len(parts) == 1:
        return parts[0]
    whole = b"".join(parts)
    if only_deltas(whole):
        return whole
    fields = _fields(whole)
    told = [at for at, (tag, _, _) in enumerate(fields) if tag == _PROGRESS]
    if len(told) < 2:
        return whole
    outdated = frozenset(told[:-1])
    return b"".join(whole[start:end] for at, (_, start, end) in enumerate(fields) if at not in outdated)


def _fields(data: bytes) -> list[tuple[int, int, int]]:
    """The fields of a part, all of them messages: each one's tag, where it begins and where it ends. None of what has
    others: that is for whoever parses it to judge."""
    fields, at, size = list[tuple[int, int, int]](), 0, len(data)
    while at < size:
        start = at
        length = shift = 0
        while True:
            at += 1
            if at >= size or shift > 63 or data[start] & 7 != _BYTES:
                return []
            length |= (data[at] & 0x7F) << shift
            shift += 7
            if data[at] < 0x80:
                break
        at += 1 + length
        fields.append((data[start], start, at))
    return fields if at == size else []
