"""Finds a prompt given twice: protobuf silently keeps the last member of a oneof, so the bytes themselves are read."""

from collections import Counter
from collections.abc import Iterator

from google.protobuf.message import Message

from stoker.v1 import generation_pb2
from stoker_common.refusal import invalid

# No message on the way to a prompt has a repeated field, so that a real request has a few dozen fields here; the
# limit keeps a request made of millions of two-byte fields from holding up the event loop.
MAX_FIELDS = 1024

_VARINT, _FIXED64, _BYTES, _GROUP, _, _FIXED32 = range(6)


def check_single_forms(request: type[Message], data: bytes) -> None:
    """Refuse a request that carries a Generation whose prompt, or whose structured output, comes in several forms.

    `data` must have been parsed as a `request` before: this reads only tags and lengths, skips all else, and takes
    what it skips for valid. Requests without a Generation pass.
    """
    number = _generation_number(request)
    if number is None:
        return
    for oneof, inside in (("prompt", ()), ("structured_output.constraint", (_STRUCTURED_OUTPUT,))):
        found = _members(data, (number, *inside), _NAMES[oneof])
        if found.total() > 1:
            forms = ", ".join(sorted(found.elements()))
            raise invalid(f"generation.{oneof}", f"given in {found.total()} forms at once ({forms}); give exactly one")


def _members(data: bytes, path: tuple[int, ...], names: dict[int, str]) -> Counter[str]:
    """How often each of the fields `names` occurs in the message at `path`, by name."""
    view = memoryview(data)
    for number in path:
        payloads = [payload for field, payload in _fields(view) if field == number]
        if not payloads:
            return Counter()
        if len(payloads) > 1:
            raise invalid("generation", "the request has a message several times that it may have once; send it once")
        view = payloads[0]
    return Counter(names[field] for field, _ in _fields(view) if field in names)


def _fields(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a serialised message that have a length, in order: number and payload. All else is skipped."""
    at, depth, seen = 0, 0, 0
    while at < len(view):
        seen += 1
        if seen > MAX_FIELDS:
            raise invalid("generation", f"has more than {MAX_FIELDS} fields; send each at most once")
        tag, at = _varint(view, at)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(view, at)
        elif kind == _FIXED64:
            at += 8
        elif kind == _FIXED32:
            at += 4
        elif kind == _BYTES:
            length, at = _varint(view, at)
            if depth == 0:
                yield tag >> 3, view[at : at + length]
            at += length
        else:
            depth += 1 if kind == _GROUP else -1


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """The number that starts at `at`, and where it ends."""
    value = shift = 0
    while True:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _generation_number(request: type[Message]) -> int | None:
    """The number of the request's field `generation`, or None if it has none that is a Generation."""
    field = request.DESCRIPTOR.fields_by_name.get("generation")
    if field is None or field.message_type is None or field.message_type.full_name != _GENERATION.full_name:
        return None
    return field.number


_GENERATION = generation_pb2.Generation.DESCRIPTOR
_STRUCTURED_OUTPUT = generation_pb2.Generation.STRUCTURED_OUTPUT_FIELD_NUMBER
_NAMES = {
    "prompt": {field.number: field.name for field in _GENERATION.oneofs_by_name["prompt"].fields},
    "structured_output.constraint": {
        field.number: field.name
        for field in generation_pb2.StructuredOutput.DESCRIPTOR.oneofs_by_name["constraint"].fields
    },
}
