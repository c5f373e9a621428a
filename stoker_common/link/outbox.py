"""What waits to go up a link: what its streams got since the last step was sent, one entry a stream."""

import asyncio

from stoker.v1 import worker_link_pb2
from stoker_common.refusal import Refusal, exhausted

# What an attached process may leave unread of one stream: some minutes of text, as its own end has it.
STREAM_BYTES = 1 << 20


class _Pending:
    """One stream's share of the next step. Its chunks are joined: joining serialised parts merges them."""

    __slots__ = ("bytes", "chunks", "error", "last", "tokens")

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.bytes = 0
        self.tokens = 0
        self.last = False
        self.error: worker_link_pb2.StreamError | None = None


class Outbox:
    """Filled by the streams, emptied by the link's one writer. Belongs to one event loop.

    One process may attach and not read: each of its streams may have `stream_bytes` waiting, and harms no other.
    """

    def __init__(self, stream_bytes: int = STREAM_BYTES) -> None:
        self._stream_bytes = stream_bytes
        self._pending: dict[int, _Pending] = {}
        self._filled = asyncio.Event()

    def put(self, stream_id: int, chunk: bytes, tokens: int) -> None:
        """A stream got a chunk. Runs once a token. Raises Refusal when too much of the stream waits unread."""
        pending = self._of(stream_id)
        pending.bytes += len(chunk)
        if pending.bytes > self._stream_bytes:
            raise _too_slow(pending.bytes)
        pending.chunks.append(chunk)
        pending.tokens += tokens

    def end(self, stream_id: int, error: worker_link_pb2.StreamError | None = None) -> None:
        """A stream has ended, well or with an error."""
        pending = self._of(stream_id)
        pending.last = True
        pending.error = error

    def drop(self, stream_id: int) -> None:
        """A stream was cancelled: nobody waits for what it got."""
        self._pending.pop(stream_id, None)
        self._filled.set()

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._pending

    def wake(self) -> None:
        """Let the writer look, though nothing was put in."""
        self._filled.set()

    async def filled(self, within_s: float) -> bool:
        """Wait until there is something, or somebody wakes the writer; False if nothing came in time."""
        if not self._pending:
            self._filled.clear()
            try:
                async with asyncio.timeout(within_s):
                    await self._filled.wait()
            except TimeoutError:
                return False
        return True

    def take(self, step: int) -> worker_link_pb2.Step:
        """All that waits, as the engine's step number `step`."""
        pending, self._pending = self._pending, {}
        outputs = [
            worker_link_pb2.StreamOutput(
                stream_id=stream_id,
                chunk=each.chunks[0] if len(each.chunks) == 1 else b"".join(each.chunks),
                last=each.last,
                error=each.error,
                tokens=each.tokens,
            )
            for stream_id, each in pending.items()
        ]
        return worker_link_pb2.Step(step=step, outputs=outputs)

    def _of(self, stream_id: int) -> _Pending:
        pending = self._pending.get(stream_id)
        if pending is None:
            pending = self._pending[stream_id] = _Pending()
            self._filled.set()
        return pending


def _too_slow(unread_bytes: int) -> Refusal:
    text = f"the client has not read {unread_bytes} bytes of its answer; read faster, or ask for less"
    return exhausted(text, reason="CLIENT_TOO_SLOW")
