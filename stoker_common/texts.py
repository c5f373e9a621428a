"""Checks of names, ids and JSON texts in requests."""

import json
import re
from typing import Any, NoReturn

from stoker_common.refusal import invalid

# JSON that nests deeper than this is no schema that a person wrote, and recursive readers behind us give up on it.
MAX_JSON_DEPTH = 64
# Reading this much takes about 1 ms.
MAX_JSON_BYTES = 128 << 10

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:/-]{0,128}")
_ROLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def check_size(path: str, text: str, most_bytes: int) -> None:
    """Refuse a text of more than so many bytes of UTF-8."""
    # A character has four bytes at most, so that most texts need no encoding here.
    if len(text) * 4 > most_bytes and (size := len(text.encode())) > most_bytes:
        raise invalid(path, f"has {size} bytes; at most {most_bytes:,} are possible")


def check_name(path: str, text: str, most_bytes: int) -> None:
    """Refuse an empty or long name, and one with control characters, white space, or segments that climb folders."""
    if not text:
        raise invalid(path, "is missing; give a name")
    check_size(path, text, most_bytes)
    # Of what can be printed a blank alone is white space.
    if not text.isprintable() or " " in text:
        bad = next(character for character in text if character.isspace() or not character.isprintable())
        raise invalid(path, f"has the character U+{ord(bad):04X}; names have printable characters and no white space")
    if any(segment in ("", ".", "..") for segment in text.replace("\\", "/").split("/")):
        raise invalid(path, "has an empty segment, '.' or '..' between slashes; give a name such as 'org/model@1'")


def check_id(path: str, text: str, most_bytes: int) -> None:
    """Refuse an empty or long id, and one with control characters: ids are logged and shown."""
    if not text:
        raise invalid(path, "is missing; give an id")
    check_size(path, text, most_bytes)
    if not text.isprintable():
        raise invalid(path, "has characters that cannot be printed; leave them out")


def check_request_id(path: str, text: str) -> None:
    """Refuse a request id that is long or has other characters than A-Z a-z 0-9 - _ . : / (empty is none)."""
    if not _REQUEST_ID.fullmatch(text):
        raise invalid(path, f"has {len(text)} characters; at most 128 of A-Z a-z 0-9 - _ . : / are possible")


def check_role(path: str, text: str) -> None:
    """Refuse a chat role that is missing, long or odd. Whether the template knows it is the template's business."""
    if not text:
        raise invalid(path, "is missing; give a role such as 'user' or 'assistant'")
    if not _ROLE.fullmatch(text):
        raise invalid(path, "is not a role; give 'system', 'user', 'assistant', 'tool' or another of the template's")


def check_json_object(path: str, text: str) -> None:
    """Refuse what is not a JSON object. Empty is the default, and fine."""
    if text and not isinstance(read_json(path, text), dict):
        raise invalid(path, "is not a JSON object; give one, such as '{}'")


def read_json(path: str, text: str) -> Any:
    """What the JSON text says. Refuses what is too long, nested too deeply, or no JSON."""
    check_size(path, text, MAX_JSON_BYTES)
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise invalid(path, f"nests too deeply; at most {MAX_JSON_DEPTH} levels are possible") from None
    except json.JSONDecodeError as error:
        raise invalid(path, f"is not JSON: {error.msg} at character {error.pos}; give valid JSON") from None
    except ValueError:
        # NaN, Infinity, or a number of thousands of digits.
        raise invalid(path, "is not JSON: it has a number that JSON does not know; give valid JSON") from None
    # As many brackets as levels at least: most texts need no second look.
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH and _depth(value) > MAX_JSON_DEPTH:
        raise invalid(path, f"nests too deeply; at most {MAX_JSON_DEPTH} levels are possible")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _depth(value: Any) -> int:
    """How deeply objects and arrays nest in the value, counted to one more than is allowed."""
    level: list[Any] = [value] if isinstance(value, dict | list) else []
    depth = 0
    while level and depth <= MAX_JSON_DEPTH:
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
        level = [item for item in level if isinstance(item, dict | list)]
        depth += 1
    return depth
