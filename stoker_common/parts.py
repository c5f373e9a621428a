"""What a serialised part of an answer holds, told from its bytes: most parts of a relayed stream are never parsed."""

from stoker.v1 import inference_pb2

_BYTES = 2
_DELTAS = inference_pb2.GenerateStreamResponse.DELTAS_FIELD_NUMBER << 3 | _BYTES


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
