"""A registrar for a server that nobody is to find in a catalog."""

import asyncio

from discovery.endpoint import Endpoint


class Unregistered:
    """Implements Registrar by doing nothing."""

    def announce(self, endpoint: Endpoint) -> None:
        """See Registrar."""

    def set_health(self, *, passing: bool, note: str) -> None:
        """See Registrar."""

    async def run(self) -> None:
        """See Registrar."""
        await asyncio.Event().wait()

    def leaving(self, reason: str) -> None:
        """See Registrar."""

    async def leave(self, reason: str) -> None:
        """See Registrar."""
