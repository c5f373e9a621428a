"""A simulated engine that loads when the test lets it."""

import asyncio

from model_server.engines.sim import SimEngine
from model_server.engines.sim_settings import SimSettings


class GatedEngine(SimEngine):
    """Waits for `gate` before it loads."""

    def __init__(self, model: str, settings: SimSettings, gate: asyncio.Event) -> None:
        super().__init__(model, settings)
        self._gate = gate

    async def start(self) -> None:
        """See Engine."""
        await self._gate.wait()
        await super().start()
