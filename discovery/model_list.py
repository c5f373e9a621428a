"""The list of models as Meta values: `name residency max-tokens [ready=..ms] [base=..]`, items joined by `; `."""

from collections.abc import Iterable, Mapping

from discovery.catalog_text import MAX_VALUE_BYTES, escape, read_count, read_number, unescape
from discovery.endpoint import ModelState, Residency
from discovery.errors import DecodeError, EncodeError

PREFIX = "model-"
# One model a key reads best in `curl`; with more models than that, keys are filled up.
_ONE_EACH = 16
_JOINT = "; "
_READY, _BASE = "ready=", "base="


def encode_models(models: Iterable[ModelState], max_keys: int) -> dict[str, str]:
    """`model-0`, `model-1`, ... Raises EncodeError if the list does not fit `max_keys` values of 512 bytes."""
    models = tuple(models)
    if len({model.name for model in models}) != len(models):
        raise EncodeError("models", "a model is listed twice")
    items = [_encode_model(model) for model in models]
    values = items if len(items) <= min(_ONE_EACH, max_keys) else _pack(items)
    if len(values) > max_keys:
        raise EncodeError(
            "models",
            f"{len(items)} models take {len(values)} Meta values of {MAX_VALUE_BYTES} bytes, and {max_keys} are left; "
            "give this server fewer models or shorter names",
        )
    return {f"{PREFIX}{index}": value for index, value in enumerate(values)}


def decode_models(meta: Mapping[str, str]) -> tuple[ModelState, ...]:
    """The models in `meta`, in order. Raises DecodeError for a gap in the keys, a bad item or a name given twice."""
    keys = [key for key in meta if key.startswith(PREFIX)]
    models: list[ModelState] = []
    for index in range(len(keys)):
        key = f"{PREFIX}{index}"
        if key not in meta:
            raise DecodeError(key, f"is missing, though there are {len(keys)} keys named {PREFIX}*")
        models.extend(_decode_model(key, item) for item in meta[key].split(_JOINT))
    if len({model.name for model in models}) != len(models):
        raise DecodeError(PREFIX + "*", "a model is listed twice")
    return tuple(models)


def _encode_model(model: ModelState) -> str:
    if not model.name:
        raise EncodeError("models", "a model has no name")
    words = [escape(model.name, also=" ;"), model.residency.value, str(model.max_model_tokens)]
    if model.time_to_ready_ms:
        words.append(f"{_READY}{model.time_to_ready_ms:g}ms")
    if model.base:
        words.append(_BASE + escape(model.base, also=" ;"))
    item = " ".join(words)
    if len(item.encode()) > MAX_VALUE_BYTES:
        raise EncodeError("models", f"{model.name[:60]!r}... takes {len(item.encode())} bytes of {MAX_VALUE_BYTES}")
    return item


def _decode_model(key: str, item: str) -> ModelState:
    words = item.split(" ")
    if len(words) < 3 or not words[0]:
        raise DecodeError(key, f"{item[:80]!r} is not `name residency max-tokens ...`")
    try:
        residency = Residency(words[1])
    except ValueError as error:
        raise DecodeError(key, f"{words[1][:40]!r} is no residency") from error
    ready_ms, base = 0.0, ""
    for word in words[3:]:
        if word.startswith(_READY) and word.endswith("ms"):
            ready_ms = read_number(key, word[len(_READY) : -len("ms")])
        elif word.startswith(_BASE):
            base = unescape(key, word[len(_BASE) :])
        # Anything else is a newer server's and does no harm.
    return ModelState(unescape(key, words[0]), residency, read_count(key, words[2]), ready_ms, base)


def _pack(items: Iterable[str]) -> list[str]:
    values: list[str] = []
    for item in items:
        if values and len(values[-1].encode()) + len(_JOINT) + len(item.encode()) <= MAX_VALUE_BYTES:
            values[-1] += _JOINT + item
        else:
            values.append(item)
    return values
