"""What waits to go up a link: what its streams got since the last step was sent, one entry a stream."""

import asyncio
from collections.abc import Iterator

from stoker.v1 import worker_link_pb2
from stoker_common.channel import MAX_RESPONSE_BYTES
from stoker_common.parts import joined, only_deltas
from stoker_common.refusal import Code, Refusal, exhausted

# What an attached process may leave unread of one stream: some minutes of text, as its own end has it.
STREAM_BYTES = 1 << 20
# What many streams have waiting goes up in several steps: one message that gRPC finds too large ends the link for all.
STEP_BYTES = 8 << 20
# A part larger than this does not fit into a message beside a step's other fields.
LARGEST_CHUNK_BYTES = MAX_RESPONSE_BYTES - STEP_BYTES - (1 << 20)


class Share:
    """One stream's share of the next step. Its chunks are joined: joining serialised parts merges them.

    Also a sink for output that only passes through (`put`). Kept for as long as the stream lives.
    """

    __slots__ = ("_limit_bytes", "_outbox", "_stream_id", "bytes", "chunks", "error", "last", "plain", "tokens")

    def __init__(self, outbox: "Outbox", stream_id: int, limit_bytes: int) -> None:
        self._outbox = outbox
        self._stream_id = stream_id
        self._limit_bytes = limit_bytes
        self.last = False
        self.error: worker_link_pb2.StreamError | None = None
        self.taken()

    def taken(self) -> None:
        """All that waited went out."""
        self.chunks: list[bytes] = []
        self.bytes = self.tokens = 0
        # Whether what waits is output and nothing else.
        self.plain = True

    def put(self, part: bytes, tokens: int = 0) -> bool:
        """Take a part of nothing but output. Runs once a token. False, and not taken, when too much waits unread."""
        size = self.bytes + len(part)
        if size > self._limit_bytes:
            return False
        if not self.chunks:
            self._outbox.waits(self._stream_id, self)
        self.bytes = size
        self.chunks.append(part)
        self.tokens += tokens
        return True


class Outbox:
    """Filled by the streams, emptied by the link's one writer. Belongs to one event loop.

    One process may attach and not read: each of its streams may have `stream_bytes` waiting, or one part of any size,
    and harms no other.
    """

    def __init__(self, stream_bytes: int = STREAM_BYTES, step_bytes: int = STEP_BYTES) -> None:
        self._stream_bytes = stream_bytes
        self._step_bytes = step_bytes
        self._shares: dict[int, Share] = {}
        # Those with something to say, in the order in which they got it.
        self._waiting: dict[int, Share] = {}
        self._messages: list[worker_link_pb2.AttachResponse] = []
        # The writer's, while it waits.
        self._waiter: asyncio.Future[bool] | None = None
        # Whether the other side reads `Step.parts`.
        self.columns = False

    def share(self, stream_id: int) -> Share:
        """A stream's share, made when it is asked for first; gone once its end was taken, or it was dropped."""
        share = self._shares.get(stream_id)
        if share is None:
            share = self._shares[stream_id] = Share(self, stream_id, self._stream_bytes)
        return share

    def put(self, stream_id: int, chunk: bytes, tokens: int) -> None:
        """A stream got a chunk of any kind. Raises Refusal when too much of the stream waits unread."""
        share, size = self.share(stream_id), len(chunk)
        if share.bytes + size > self._stream_bytes:
            if share.chunks:
                raise _too_slow(share.bytes + size)
            # Logprobs of a long prompt come in one part, however well it is read.
            if size > LARGEST_CHUNK_BYTES:
                raise _too_large(size)
        self.waits(stream_id, share)
        share.plain = share.plain and only_deltas(chunk)
        share.bytes += size
        share.chunks.append(chunk)
        share.tokens += tokens

    def end(self, stream_id: int, error: worker_link_pb2.StreamError | None = None) -> None:
        """A stream has ended, well or with an error."""
        share = self.share(stream_id)
        share.last = True
        share.error = error
        self.waits(stream_id, share)

    def drop(self, stream_id: int) -> None:
        """A stream was cancelled: nobody waits for what it got."""
        self._shares.pop(stream_id, None)
        self._waiting.pop(stream_id, None)
        self.wake()

    def waits(self, stream_id: int, share: Share) -> None:
        """For shares: this one has something to say."""
        self._waiting[stream_id] = share
        if self._waiter is not None:
            self.wake()

    def say(self, message: worker_link_pb2.AttachResponse) -> None:
        """A message of its own, before the next step."""
        self._messages.append(message)
        self.wake()

    def messages(self) -> Iterator[worker_link_pb2.AttachResponse]:
        """Those that wait, taken one by one."""
        while self._messages:
            yield self._messages.pop(0)

    def holds(self, stream_id: int) -> bool:
        """Whether something of the stream waits."""
        return stream_id in self._waiting

    @property
    def empty(self) -> bool:
        """Whether nothing of any stream waits."""
        return not self._waiting

    def wake(self) -> None:
        """Let the writer look, whatever was put in."""
        if self._waiter is not None:
            _settle(self._waiter, True)
            self._waiter = None

    async def filled(self, within_s: float) -> bool:
        """Wait until there is something, or somebody wakes the writer; False if nothing came in time."""
        if self._waiting or self._messages:
            return True
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiter = waiter
        late = loop.call_later(within_s, _settle, waiter, False)
        try:
            return await waiter
        finally:
            late.cancel()
            self._waiter = None

    def take(self, step: int) -> worker_link_pb2.AttachResponse:
        """What waits, as the engine's step number `step`; of very much, the first part."""
        # Filled in place: a message that is given another one copies it, with all that is in it.
        response = worker_link_pb2.AttachResponse()
        filled = response.step
        filled.step = step
        stream_ids, chunks, tokens = list[int](), list[bytes](), list[int]()
        left_bytes, waiting = self._step_bytes, self._waiting
        self._waiting = {}
        taken = 0
        for stream_id, share in waiting.items():
            if share.bytes > left_bytes and taken:
                self._waiting[stream_id] = share
                continue
            taken += 1
            left_bytes -= share.bytes
            chunk = share.chunks[0] if len(share.chunks) == 1 else joined(share.chunks)
            if share.last or not (share.plain and self.columns):
                filled.outputs.add(
                    stream_id=stream_id, chunk=chunk, last=share.last, error=share.error, tokens=share.tokens
                )
            else:
                stream_ids.append(stream_id)
                chunks.append(chunk)
                tokens.append(share.tokens)
            if share.last:
                del self._shares[stream_id]
            else:
                share.taken()
        if chunks:
            filled.parts.stream_ids.extend(stream_ids)
            filled.parts.chunks.extend(chunks)
            filled.parts.tokens.extend(tokens)
        filled.SetInParent()  # however little is in it
        return response


def _settle(waiter: "asyncio.Future[bool]", filled: bool) -> None:
    if not waiter.done():
        waiter.set_result(filled)


def _too_slow(unread_bytes: int) -> Refusal:
    text = f"the client has not read {unread_bytes} bytes of its answer; read faster, or ask for less"
    return exhausted(text, reason="CLIENT_TOO_SLOW")


def _too_large(part_bytes: int) -> Refusal:
    text = f"a part of the answer has {part_bytes} bytes, and {LARGEST_CHUNK_BYTES} fit; ask for fewer logprobs"
    return Refusal(Code.INVALID_ARGUMENT, text, reason="ANSWER_TOO_LARGE")
