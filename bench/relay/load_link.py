"""Load over gRPC as the SDK has it with several streams: one link for all streams of a client."""

import random
from collections.abc import Callable
from contextlib import aclosing

from bench.relay.load import Seen, Watcher
from bench.relay.load_grpc import SAMPLED
from bench.relay.script import MODEL, ONCE
from stoker.v1 import generation_pb2, worker_link_pb2
from stoker_client.peer import LinkUse, Peer
from stoker_common.backoff import Backoff
from stoker_common.link.client import LinkRules
from stoker_common.link.versions import SPOKEN

# Attached from the first stream on and waited for as long as it takes: none of the streams stays a call to its end.
ALL_LINKED = LinkUse(streams=1, wait_s=10.0, rules=LinkRules(stalled_s=None))


class LinkLoad:
    """A `Load`. It sees parts, and no messages: one message carries a part of each stream."""

    def __init__(self, address: str) -> None:
        hello = worker_link_pb2.Hello(link_version=SPOKEN.highest, router="client-bench", client=True)
        self._peer = Peer(address, hello, ALL_LINKED, Backoff(random.Random(), 0.1, 2.0))

    async def stream(self, i: int, how: str, tokens: int, seen: Seen, began: Callable[[], None]) -> None:
        """See `Load`. Raises RuntimeError for a stream that did not go over the link."""
        watcher = Watcher(seen) if i % SAMPLED == 0 else None
        first = True
        sampling = generation_pb2.Sampling(max_tokens=tokens, ignore_eos=True)
        generation = generation_pb2.Generation(model=MODEL, text=f"{how} {i}", sampling=sampling)
        async with aclosing(self._peer.stream(generation, (), None)) as parts:
            async for part in parts:
                seen.tokens += len(part.deltas)
                if watcher is not None:
                    for delta in part.deltas:
                        watcher.came(delta.text)
                if first and part.deltas:
                    first = False
                    if not self._peer.linked:
                        raise RuntimeError("the link was not up in time: this stream is a call")
                    began()

    async def unary(self) -> None:
        """See `Load`. Over the link too: the SDK asks for whole answers as streams."""
        await self.stream(1, ONCE, 16, Seen(), lambda: None)

    async def close(self) -> None:
        """See `Load`."""
        await self._peer.close()
