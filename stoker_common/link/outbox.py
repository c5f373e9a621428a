"""What waits to go up a link: what its streams got since the last step was sent, one entry a stream."""

import asyncio
from collections.abc import Iterator

from stoker.v1 import worker_link_pb2
from stoker_common.channel import MAX_RESPONSE_BYTES
from stoker_common.parts import joined
from stoker_common.refusal import Code, Refusal, exhausted

# What an attached process may leave unread of one stream: some minutes of text, as its own end has it.
STREAM_BYTES = 1 << 20
# What many streams have waiting goes up in several steps: one message that gRPC finds too large ends the link for all.
STEP_BYTES = 8 << 20
# A part larger than this does not fit into a message beside a step's other fields.
LARGEST_CHUNK_BYTES = MAX_RESPONSE_BYTES - STEP_BYTES - (1 << 20)


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

    One process may attach and not read: each of its streams may have `stream_bytes` waiting, or one part of any size,
    and harms no other.
    """

    def __init__(self, stream_bytes: int = STREAM_BYTES, step_bytes: int = STEP_BYTES) -> None:
        self._stream_bytes = stream_bytes
        self._step_bytes = step_bytes
        self._pending: dict[int, _Pending] = {}
        self._bytes = 0
        self._messages: list[worker_link_pb2.AttachResponse] = []
        self._filled = asyncio.Event()

    def put(self, stream_id: int, chunk: bytes, tokens: int) -> None:
        """A stream got a chunk. Raises Refusal when too much of the stream waits unread."""
        if self.offer(stream_id, chunk, tokens):
            return
        pending, size = self._of(stream_id), len(chunk)
        if pending.chunks:
            raise _too_slow(pending.bytes + size)
        # Logprobs of a long prompt come in one part, however well it is read.
        if size > LARGEST_CHUNK_BYTES:
            raise _too_large(size)
        self._add(pending, chunk, tokens)

    def offer(self, stream_id: int, chunk: bytes, tokens: int) -> bool:
        """A stream got a chunk. Runs once a token. False, and not taken, when too much of the stream waits unread."""
        pending = self._of(stream_id)
        if pending.bytes + len(chunk) > self._stream_bytes:
            return False
        self._add(pending, chunk, tokens)
        return True

    def _add(self, pending: _Pending, chunk: bytes, tokens: int) -> None:
        size = len(chunk)
        pending.bytes += size
        self._bytes += size
        pending.chunks.append(chunk)
        pending.tokens += tokens

    def end(self, stream_id: int, error: worker_link_pb2.StreamError | None = None) -> None:
        """A stream has ended, well or with an error."""
        pending = self._of(stream_id)
        pending.last = True
        pending.error = error

    def drop(self, stream_id: int) -> None:
        """A stream was cancelled: nobody waits for what it got."""
        dropped = self._pending.pop(stream_id, None)
        if dropped is not None:
            self._bytes -= dropped.bytes
        self._filled.set()

    def say(self, message: worker_link_pb2.AttachResponse) -> None:
        """A message of its own, before the next step."""
        self._messages.append(message)
        self._filled.set()

    def messages(self) -> Iterator[worker_link_pb2.AttachResponse]:
        """Those that wait, taken one by one."""
        while self._messages:
            yield self._messages.pop(0)

    def holds(self, stream_id: int) -> bool:
        """Whether something of the stream waits."""
        return stream_id in self._pending

    @property
    def empty(self) -> bool:
        """Whether nothing of any stream waits."""
        return not self._pending

    def wake(self) -> None:
        """Let the writer look, though nothing was put in."""
        self._filled.set()

    async def filled(self, within_s: float) -> bool:
        """Wait until there is something, or somebody wakes the writer; False if nothing came in time."""
        if not self._pending and not self._messages:
            self._filled.clear()
            try:
                async with asyncio.timeout(within_s):
                    await self._filled.wait()
            except TimeoutError:
                return False
        return True

    def take(self, step: int) -> worker_link_pb2.Step:
        """What waits, as the engine's step number `step`; of very much, the first part."""
        pending, self._pending = self._pending, {}
        if self._bytes > self._step_bytes:
            pending = self._first(pending)
        self._bytes = sum(each.bytes for each in self._pending.values()) if self._pending else 0
        outputs = [
            worker_link_pb2.StreamOutput(
                stream_id=stream_id,
                chunk=joined(each.chunks),
                last=each.last,
                error=each.error,
                tokens=each.tokens,
            )
            for stream_id, each in pending.items()
        ]
        return worker_link_pb2.Step(step=step, outputs=outputs)

    def _first(self, pending: dict[int, _Pending]) -> dict[int, _Pending]:
        """As many streams as make up a step, one at least. The others wait on."""
        taken: dict[int, _Pending] = {}
        size = 0
        for stream_id, each in pending.items():
            if taken and size + each.bytes > self._step_bytes:
                self._pending[stream_id] = each
            else:
                taken[stream_id] = each
                size += each.bytes
        return taken

    def _of(self, stream_id: int) -> _Pending:
        pending = self._pending.get(stream_id)
        if pending is None:
            pending = self._pending[stream_id] = _Pending()
            self._filled.set()
        return pending


def _too_slow(unread_bytes: int) -> Refusal:
    text = f"the client has not read {unread_bytes} bytes of its answer; read faster, or ask for less"
    return exhausted(text, reason="CLIENT_TOO_SLOW")


def _too_large(part_bytes: int) -> Refusal:
    text = f"a part of the answer has {part_bytes} bytes, and {LARGEST_CHUNK_BYTES} fit; ask for fewer logprobs"
    return Refusal(Code.INVALID_ARGUMENT, text, reason="ANSWER_TOO_LARGE")
