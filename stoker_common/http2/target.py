"""What a channel is made for, and the addresses that this means: `host:port`, as gRPC writes it."""

import asyncio
import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Final

_DEFAULT_PORT: Final = 443
_SCHEMES: Final = ("ipv4:", "ipv6:", "dns:///", "dns:")
_OTHER: Final = re.compile(r"[a-z][a-z0-9+.-]*:(//|[^0-9])")


@dataclass(frozen=True, slots=True)
class Target:
    """A host, by name or address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return self.authority

    @property
    def authority(self) -> str:
        """What requests call it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    async def addresses(self, within_s: float) -> list[tuple[str, int]]:
        """Each of its addresses, in the resolver's order. Raises OSError or TimeoutError."""
        try:
            return [(str(ipaddress.ip_address(self.host)), self.port)]
        except ValueError:
            # A name.
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(within_s):
                found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
            return list(dict.fromkeys((str(at[0]), self.port) for *_, at in found))


def target(text: str) -> Target:
    """What `host:port`, `[host]:port`, `ipv4:…`, `ipv6:…` or `dns:…` mean. Raises ValueError for others (`unix:…`)."""
    bare = next((text.removeprefix(scheme) for scheme in _SCHEMES if text.startswith(scheme)), text)
    if bare is text and _OTHER.match(text):
        raise ValueError(f"{text!r} cannot be reached by Stoker's own HTTP/2; host:port can, or use gRPC's")
    host, colon, port = bare.rpartition(":")
    if not colon or host.endswith(":") or (":" in host and not host.startswith("[")):
        # No port: what is left is a name, or an address with colons.
        return Target(bare.strip("[]"), _DEFAULT_PORT)
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f"{text!r} is no address, which is host:port")
    return Target(host.strip("[]"), int(port))
