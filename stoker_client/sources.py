"""Where a client learns its routers' addresses from: as given, by DNS, or from Consul."""

import asyncio
import ipaddress
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from hashlib import sha256
from typing import Protocol

CONSUL = "consul://"
# A name's addresses are asked for again after so long, and at once when one of them failed.
DNS_AGE_S = 30.0

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class Source(Protocol):
    """Names routers. Works from what it knew last while it cannot ask. Belongs to one event loop."""

    async def addresses(self, within_s: float) -> Sequence[str]:
        """host:port of each, first choice first; takes at most about `within_s`. Empty if none was ever known."""

    def doubt(self, address: str) -> None:
        """This address failed: ask again before the next call if it came from here."""

    async def close(self) -> None:
        """Let go of connections."""


class Named:
    """One `host:port`. A name stands for all of its A and AAAA records, each a router of its own."""

    def __init__(
        self,
        address: str,
        rng: random.Random,
        resolve: Resolve | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._salt = salt(rng)
        self._host, self._port = _split(address)
        self._resolve = resolve or _resolve
        self._clock = clock
        self._known: Sequence[str] = ()
        self._ask_again_s = float("-inf")

    def __str__(self) -> str:
        return self._address

    async def addresses(self, within_s: float) -> Sequence[str]:
        """See Source."""
        if not self._host:
            return (self._address,)
        if self._clock() >= self._ask_again_s:
            try:
                async with asyncio.timeout(within_s):
                    found = await self._resolve(self._host, self._port)
            except (OSError, TimeoutError):
                # Fail static: a resolver that is away takes no router from us.
                found = ()
            self._known = tuple(self._ordered(found)) or self._known
            self._ask_again_s = self._clock() + DNS_AGE_S
        return self._known

    def _ordered(self, found: Sequence[str]) -> list[str]:
        """Which family comes first is the resolver's to say: the other one may have no way out of here."""
        first = [each for each in found if _is_v6(each) == _is_v6(found[0])]
        return spread(first, self._salt) + spread((each for each in found if each not in first), self._salt)

    def doubt(self, address: str) -> None:
        """See Source."""
        if address in self._known:
            self._ask_again_s = self._clock()

    async def close(self) -> None:
        """See Source."""


def salt(rng: random.Random) -> bytes:
    """What makes an order this client's own."""
    return rng.randbytes(8)


def spread(addresses: Iterable[str], salt: bytes) -> list[str]:
    """Each address once, in the order of the client with this salt. A name's or a zone's routers are alike, and whoever
    names them names the same one first to everybody: a thousand clients would crowd it while the others idle."""
    return sorted(set(addresses), key=lambda address: sha256(salt + address.encode()).digest())


def source(form: str, rng: random.Random) -> Source:
    """The source that `form` names: `host:port`, `name:port` or `consul://host:port`. Raises ValueError."""
    if form.startswith(CONSUL):
        # Loaded when it is asked for: `stoker generate` starts in half the time without.
        from stoker_client.consul_routers import ConsulRouters

        return ConsulRouters(form.removeprefix(CONSUL), rng)
    if not form:
        raise ValueError("a router's address is empty; write host:port, or consul://host:port")
    return Named(form, rng)


def _split(address: str) -> tuple[str, int]:
    """Host and port of a name to be resolved; no host where there is nothing to resolve."""
    host, _, port = address.rpartition(":")
    # `unix:...` and `dns:///...` are gRPC's own, and so is what is no name with a port.
    if not host or not port.isdecimal() or "/" in address or host.startswith("unix"):
        return "", 0
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host, int(port)
    return "", 0


def _is_v6(address: str) -> bool:
    return address.startswith("[")


async def _resolve(host: str, port: int) -> Sequence[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    hosts = [str(where[0]) for _, _, _, _, where in found]
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts]
