"""The address of a Consul agent: host:port or a URL, checked where settings are."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

DEFAULT_PORT = 8500


def split(address: str) -> tuple[str, int, str]:
    """Host (IPv6 in brackets), port and scheme. Raises ValueError for what is no such address."""
    no_address = f"{address!r} is no address of a Consul agent; write host:port or http://host:port"
    parts = urlsplit(address if "//" in address else f"//{address}", scheme="http")
    try:
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError as error:
        raise ValueError(no_address) from error
    if not host or parts.scheme not in ("http", "https") or parts.path.strip("/") or parts.query:
        raise ValueError(no_address)
    return f"[{host}]" if ":" in host else host, port, parts.scheme


def _checked(address: str) -> str:
    if address:
        split(address)
    return address


# A setting: an address, or empty where there may be none.
ConsulAddress = Annotated[str, AfterValidator(_checked)]
