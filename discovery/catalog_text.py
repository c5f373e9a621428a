"""Text that survives the catalog: one line, readable, within Consul's limits, the same after decoding."""

import re
from urllib.parse import unquote_to_bytes

from discovery.errors import DecodeError

# Consul's limits on service Meta (agent/structs: ValidateServiceMetadata).
MAX_PAIRS = 64
MAX_VALUE_BYTES = 512

_COUNT = re.compile(r"[0-9]{1,18}", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})?(e[+-]?[0-9]{1,2})?", re.ASCII)
_LARGEST_NUMBER = 1e18


def escape(text: str, also: str = "") -> str:
    """`text` with `%`, what cannot be printed and the characters of `also` percent-encoded."""
    if text.isprintable() and not any(char in text for char in "%" + also):
        return text
    return "".join(
        char
        if char.isprintable() and char != "%" and char not in also
        else "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
        for char in text
    )


def unescape(key: str, text: str) -> str:
    """The reverse of `escape`. Raises DecodeError naming `key` if what comes out is not text."""
    if "%" not in text:
        return text
    try:
        return unquote_to_bytes(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")
    except UnicodeError as error:
        raise DecodeError(key, "is not UTF-8 after percent-decoding") from error


def read_count(key: str, text: str) -> int:
    """A whole number from 0 to 10**18 - 1. Raises DecodeError for anything else."""
    if not _COUNT.fullmatch(text):
        raise DecodeError(key, f"{text[:40]!r} is not a whole number from 0 to 10**18 - 1")
    return int(text)


def read_number(key: str, text: str, largest: float = _LARGEST_NUMBER) -> float:
    """A decimal number in [0, largest]. Raises DecodeError for anything else, NaN and infinities included."""
    if not _NUMBER.fullmatch(text) or float(text) > largest:
        raise DecodeError(key, f"{text[:40]!r} is not a number from 0 to {largest:g}")
    return float(text)
