"""Checks of the form that a generation's output must have. Whether a grammar compiles is the engine's to say."""

from stoker.v1.generation_pb2 import StructuredOutput
from stoker_common.refusal import invalid
from stoker_common.texts import check_json_object, check_size, read_json

# Grammars are compiled before the first token: the limits keep one request from compiling for minutes.
MAX_REGEX_BYTES = 16 << 10
MAX_GRAMMAR_BYTES = 128 << 10
MAX_CHOICES = 1024
MAX_CHOICE_BYTES = 4 << 10

_PATH = "generation.structured_output"


def check_structured_output(structured: StructuredOutput) -> None:
    """Refuse a constraint that is missing, empty, too large, or no JSON where JSON is meant."""
    form = structured.WhichOneof("constraint")
    if form is None:
        forms = ", ".join(field.name for field in structured.DESCRIPTOR.oneofs_by_name["constraint"].fields)
        raise invalid(_PATH, f"has no constraint; give one of {forms}, or leave structured_output out")
    check_size(f"{_PATH}.whitespace_pattern", structured.whitespace_pattern, MAX_REGEX_BYTES)
    if form == "json_object":
        return
    if form == "choice":
        _check_choice(structured)
        return
    path, text = f"{_PATH}.{form}", getattr(structured, form)
    if not text:
        raise invalid(path, "is empty; give the constraint, or leave structured_output out")
    if form == "json_schema":
        # `true` and `false` are schemas as well, of anything and of nothing.
        if not isinstance(read_json(path, text), dict | bool):
            raise invalid(path, "is not a JSON schema; give a JSON object")
    elif form == "structural_tag":
        check_json_object(path, text)
    else:
        check_size(path, text, MAX_REGEX_BYTES if form == "regex" else MAX_GRAMMAR_BYTES)


def _check_choice(structured: StructuredOutput) -> None:
    path, values = f"{_PATH}.choice.values", structured.choice.values
    if not values:
        raise invalid(path, "is empty; give at least one string to choose from")
    if len(values) > MAX_CHOICES:
        raise invalid(path, f"has {len(values):,} entries; at most {MAX_CHOICES:,} are possible")
    for at, value in enumerate(values):
        if not value:
            raise invalid(f"{path}[{at}]", "is empty; give at least one character")
        check_size(f"{path}[{at}]", value, MAX_CHOICE_BYTES)
