"""Load in the SDK's direct mode: the router names a server for each stream, which then comes from that."""

from collections.abc import Callable

from bench.relay.load import Seen
from bench.relay.script import MODEL_DIRECT, ONCE
from stoker_client import Client

# A simulated server serves these streams: none is longer than its context.
_MOST_TOKENS = 4_000


class DirectLoad:
    """A `Load`. It tells no delays: its tokens come from a simulated server, which stamps none."""

    def __init__(self, address: str) -> None:
        self._client = Client(address, mode="direct")

    async def stream(self, i: int, how: str, tokens: int, seen: Seen, began: Callable[[], None]) -> None:
        """See `Load`."""
        first = True
        most = min(tokens, _MOST_TOKENS)
        chunks = self._client.stream(f"{how} {i}", model=MODEL_DIRECT, max_tokens=most, ignore_eos=True)
        async with chunks:
            async for chunk in chunks:
                seen.tokens += len(chunk.token_ids)
                if first and chunk.token_ids:
                    first = False
                    began()

    async def unary(self) -> None:
        """See `Load`."""
        await self._client.generate(ONCE, model=MODEL_DIRECT, max_tokens=1, ignore_eos=True)

    async def close(self) -> None:
        """See `Load`."""
        await self._client.close()
