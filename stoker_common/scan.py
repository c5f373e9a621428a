"""Finds a prompt given twice: protobuf silently keeps the last member of a oneof, so the bytes themselves are read."""

from collections.abc import Iterable, Iterator

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
    generation = _once(payload for field, payload in _fields(memoryview(data)) if field == number)
    if generation is None:
        return
    prompts, structured = list[str](), list[memoryview]()
    for field, payload in _fields(generation):
        if field in _PROMPTS:
            prompts.append(_PROMPTS[field])
        elif field == _STRUCTURED_OUTPUT:
            structured.append(payload)
    _single("prompt", prompts)
    output = _once(structured)
    if output is not None:
        _single(
            "structured_output.constraint",
            [_CONSTRAINTS[field] for field, _ in _fields(output) if field in _CONSTRAINTS],
        )


def _once(payloads: Iterable[memoryview]) -> memoryview | None:
    """The only one of them, None if there is none."""
    found = list(payloads)
    if len(found) > 1:
        raise invalid("generation", "the request has a message several times that it may have once; send it once")
    return found[0] if found else None


def _single(oneof: str, names: list[str]) -> None:
    """Refuse a oneof of which several members are there, or one several times."""
    if len(names) > 1:
        forms = ", ".join(sorted(names))
        raise invalid(f"generation.{oneof}", f"given in {len(names)} forms at once ({forms}); give exactly one")


def _fields(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a serialised message that have a length, in order: number and payload. All else is skipped."""
    at, depth, seen = 0, 0, 0
    while at < len(view):
        seen += 1
        if seen > MAX_FIELDS:
            raise invalid("generation", f"has more than {MAX_FIELDS} fields; send each at most once")
        tag = view[at]
        at += 1
        if tag >= 0x80:
            tag, at = _varint(view, at - 1)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(view, at)
        elif kind == _FIXED64:
            at += 8
        elif kind == _FIXED32:
            at += 4
        elif kind == _BYTES:
            length = view[at]
            at += 1
            if length >= 0x80:
                length, at = _varint(view, at - 1)
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
_PROMPTS = {field.number: field.name for field in _GENERATION.oneofs_by_name["prompt"].fields}
_CONSTRAINTS = {
    field.number: field.name for field in generation_pb2.StructuredOutput.DESCRIPTOR.oneofs_by_name["constraint"].fields
}
