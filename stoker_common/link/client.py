"""The attaching end of a worker link: one stream to one peer, for all of this process's generations there.

A router attaches to servers, a client to servers or to a router.
"""

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration

from stoker.v1 import endpoint_pb2, worker_link_pb2
from stoker_common import status
from stoker_common.backoff import Backoff
from stoker_common.bid import METADATA_KEY as BID_KEY
from stoker_common.channel import MAX_REQUEST_BYTES, METADATA_HARD_BYTES
from stoker_common.clock import Clock
from stoker_common.link.progress import Progress
from stoker_common.link.silence import Silence
from stoker_common.link.state import Cause, LinkError, LinkState
from stoker_common.link.stream import LinkStream
from stoker_common.link.versions import MORE, SPOKEN, Versions
from stoker_common.refusal import unavailable
from stoker_common.tickets import METADATA_KEY
from stoker_common.ticks import tick

log = logging.getLogger(__name__)

METHOD = "/stoker.v1.WorkerLinkService/Attach"

OnLoad = Callable[[endpoint_pb2.Load], None]
OnDirect = Callable[[worker_link_pb2.DirectStream], None]
OnState = Callable[[LinkState], None]
Metadata = tuple[tuple[str, str | bytes], ...]
# Told of the peer's caches; False if a part was missed.
OnDigest = Callable[[worker_link_pb2.CacheDigest], bool]
# What a message takes more beside another: its tag and its length.
_MORE_BYTES = 8
Call = grpc.aio.StreamStreamCall[bytes, bytes]


@runtime_checkable
class Heard(Protocol):
    """A call that hands over what comes as it comes; grpc's own has to be read."""

    def hear(self, hear: Callable[[bytes], None]) -> None:
        """Hand each message to `hear` from now on. Reading gives the end alone, and what `hear` raises."""


@dataclass(frozen=True, slots=True)
class LinkRules:
    """Limits of a link. Sources: DESIGN.md sections 4 and 6."""

    # A server sends a heartbeat every 0.5 s at least.
    silent_s: float = 2.0
    tick_s: float = 0.25
    # An engine whose step counter stands still while it has streams running. None: the peer has no engine.
    stalled_s: float | None = 2.0
    # A stream that its server's steps leave out so often, 0.5 s apart.
    idle_looks: int = 4
    # A slow client's unread answer: some minutes of text.
    stream_bytes: int = 1 << 20
    connect_s: float = 2.0


class Link:
    """One peer's link. `run` keeps it up, or `attach` holds it once; `open` starts a generation while it is up.

    `peer` is its id for logs, `where` what failures call it: `server a-1 at host:port in zone-a`.
    """

    def __init__(
        self,
        peer: str,
        where: str,
        channel: grpc.aio.Channel,
        hello: worker_link_pb2.Hello,
        rules: LinkRules,
        backoff: Backoff,
        clock: Clock,
        on_load: OnLoad,
        on_state: OnState,
        on_digest: OnDigest | None = None,
        on_direct: OnDirect | None = None,
        versions: Versions = SPOKEN,
        count: Callable[[bytes], int] = lambda chunk: 0,
        epoch: str = "",
    ) -> None:
        """With `on_digest`, the peer is asked what it has cached. `hello` tells the highest of `versions`. `count` says
        how many tokens a chunk has whose peer does not tell. `epoch`: the life that is meant, empty for whoever answers
        there: an address may be another server's by now."""
        self._epoch = epoch
        self._versions = versions
        self._count = count
        self._peer = peer
        self._where = where
        self._channel = channel
        self._hello = hello
        self._rules = rules
        self._backoff = backoff
        self._clock = clock
        self._on_load = on_load
        self._on_state = on_state
        self._on_direct = on_direct
        self._on_digest = on_digest
        self._ids = itertools.count(1)
        self._streams: dict[int, LinkStream] = {}
        self._outgoing: deque[worker_link_pb2.AttachRequest] = deque()
        self._said = asyncio.Event()
        self._silence = Silence(rules.silent_s, 2 * rules.tick_s, clock())
        self._progress = Progress(rules.stalled_s, 2 * rules.tick_s, clock()) if rules.stalled_s is not None else None
        self.state = LinkState.DOWN
        # The one that both speak, while it is up.
        self.version = 0
        # Whether another one answered where this one is said to be, when it was tried last.
        self.elsewhere = False
        # Set once it has been up, or could not be had.
        self.tried = asyncio.Event()
        # Why it has been down since it was up last, as far as that was logged.
        self._told = ""

    async def run(self) -> None:
        """Attach, and attach again whenever the link breaks, until cancelled."""
        while True:
            why = await self.attach()
            # A peer that is gone for long is tried every two seconds: once said is enough.
            if why != self._told:
                log.warning("link down", extra={"server": self._peer, "why": why})
                self._told = why
            await asyncio.sleep(self._backoff.delay_s())

    async def attach(self) -> str:
        """Attach, and hold the link until it breaks or this is cancelled. Why it is down again."""
        why = "it was let go of here"
        try:
            why = await self._attach_once()
            return why
        finally:
            self.tried.set()
            self._lost(why)

    @property
    def streams(self) -> int:
        """Generations under way on it."""
        return len(self._streams)

    @staticmethod
    def fits(generation: bytes) -> bool:
        """Whether the link can carry a request: gRPC ends a link, with all that runs on it, over a message that is too
        large. One that does not fit may go by a call of its own. What goes along is metadata there, and as small."""
        return len(generation) + METADATA_HARD_BYTES <= MAX_REQUEST_BYTES

    def open(self, generation: bytes, timeout_s: float | None, metadata: Metadata = ()) -> tuple[int, LinkStream]:
        """Start a generation, a serialised `Generation`; returns its number and its stream. Not while it is DOWN,
        nor with one that does not fit.

        Of a call's metadata, the trace, the ticket and the bid go along.
        """
        return self._open(worker_link_pb2.StartStream(generation=generation), timeout_s, metadata)

    def ask(self, route: bytes, timeout_s: float | None, metadata: Metadata = ()) -> tuple[int, LinkStream]:
        """Ask a router for a server: a serialised `RouteRequest`. Else as `open`; not below version `ROUTES`."""
        return self._open(worker_link_pb2.StartStream(route=route), timeout_s, metadata)

    def _open(
        self, start: worker_link_pb2.StartStream, timeout_s: float | None, metadata: Metadata
    ) -> tuple[int, LinkStream]:
        stream_id = start.stream_id = next(self._ids)
        stream = self._streams[stream_id] = LinkStream(self._rules.stream_bytes)
        for key, value in metadata:
            if key == "traceparent" and isinstance(value, str):
                start.traceparent = value
            elif key == METADATA_KEY and isinstance(value, bytes):
                start.ticket = value
            elif key == BID_KEY and isinstance(value, bytes):
                start.bid.ParseFromString(value)
        if timeout_s is not None:
            timeout = Duration()
            timeout.FromNanoseconds(int(timeout_s * 1e9))
            start.timeout.CopyFrom(timeout)
        self._say(worker_link_pb2.AttachRequest(start=start))
        return stream_id, stream

    def close(self, stream_id: int) -> None:
        """The attempt is over. If the server has not ended the stream, it is told to."""
        if self._streams.pop(stream_id, None) is not None and self.state is not LinkState.DOWN:
            self._say(worker_link_pb2.AttachRequest(cancel=worker_link_pb2.CancelStream(stream_id=stream_id)))

    def move(self, reservation: bytes, why: str) -> None:
        """The peer is to end a client's stream, which goes on elsewhere."""
        if self.state is not LinkState.DOWN:
            moved = worker_link_pb2.MoveStream(reservation=reservation, reason=why)
            self._say(worker_link_pb2.AttachRequest(move=moved))

    async def _attach_once(self) -> str:
        """Why the link is down again."""
        why = "the server ended it"
        try:
            await self._attached()
        except* grpc.aio.AioRpcError as group:
            error = group.exceptions[0]
            why = (error.details() or error.code().name) if isinstance(error, grpc.aio.AioRpcError) else str(error)
        except* _Unwelcome as group:
            why = str(group.exceptions[0])
        except* (_Silent, TimeoutError):
            why = f"no sign of life for {self._rules.silent_s:g} s"
        return why

    async def _attached(self) -> None:
        call: Call = self._channel.stream_stream(METHOD)()
        try:
            await _written(call, worker_link_pb2.AttachRequest(hello=self._hello).SerializeToString())
            async with asyncio.timeout(self._rules.connect_s):
                first = await call.read()
            if not isinstance(first, bytes):
                return
            welcome = worker_link_pb2.AttachResponse.FromString(first).welcome
            version = welcome.link_version
            if not self._versions.accept(version):
                raise _Unwelcome(f"it welcomes in version {version} of the link; {self._versions} is spoken here")
            there = welcome.endpoint
            self.elsewhere = bool(self._epoch and there.epoch) and there.epoch != self._epoch
            if self.elsewhere:
                raise _Unwelcome(f"at its address is {there.server} in its life {there.epoch}, not {self._epoch}")
            self.version = version
            self._outgoing.clear()
            self._silence.heard()
            if self._progress is not None:
                self._progress.begin()
            self._backoff.reset()
            self._told = ""
            if welcome.endpoint.HasField("load"):
                # Before whoever waits for the link: the catalog's figure may be of a stream that ended long ago.
                self._on_load(welcome.endpoint.load)
            self.tried.set()
            self._become(LinkState.UP)
            if self._on_digest is not None:
                self._say(worker_link_pb2.AttachRequest(send_digest=worker_link_pb2.SendDigest()))
            async with asyncio.TaskGroup() as tasks:
                helpers = [tasks.create_task(self._write(call)), tasks.create_task(self._watch())]
                await self._read(call)
                for helper in helpers:
                    helper.cancel()
        finally:
            call.cancel()

    async def _read(self, call: Call) -> None:
        if isinstance(call, Heard):
            # In the turn of the loop in which it came: no task is woken for a message.
            call.hear(self._hear)
        while isinstance(data := await call.read(), bytes):
            self._hear(data)

    def _hear(self, data: bytes) -> None:
        """A message came."""
        self._silence.heard()
        response = worker_link_pb2.AttachResponse.FromString(data)
        if response.HasField("step"):
            step = response.step
            if step.HasField("digest"):
                self._cached(step.digest)
            if step.HasField("parts"):
                self._take_parts(step.parts)
            for output in step.outputs:
                self._take(output)
            for stream_id in step.running_without_output:
                self._left_out(stream_id)
            if self._on_direct is not None:
                for news in step.direct:
                    self._on_direct(news)
            self._sign(step.step, step.load if step.HasField("load") else None)
        elif response.HasField("heartbeat"):
            beat = response.heartbeat
            if beat.HasField("digest"):
                self._cached(beat.digest)
            self._sign(beat.step, beat.load if beat.HasField("load") else None)
        elif response.HasField("goodbye"):
            log.info("server leaves", extra={"server": self._peer, "reason": response.goodbye.reason})
            self._become(LinkState.LEAVING)
        elif response.HasField("refused"):
            refused = response.refused
            about = {"server": self._peer, "stream": refused.stream_id, "why": refused.error.message}
            log.error("a message was not taken", extra=about)

    def _cached(self, digest: worker_link_pb2.CacheDigest) -> None:
        """Before a step's outputs, so that whoever is told of a computed prompt finds it in the cache."""
        if self._on_digest is not None and not self._on_digest(digest):
            self._say(worker_link_pb2.AttachRequest(send_digest=worker_link_pb2.SendDigest()))

    def _take_parts(self, parts: worker_link_pb2.StepParts) -> None:
        """Hand streams the output that they got."""
        sizes = {len(parts.stream_ids), len(parts.chunks), len(parts.tokens)}
        if len(sizes) > 1:
            raise _Unwelcome(f"its step's columns are of different lengths: {sorted(sizes)}")
        streams = self._streams
        for stream_id, chunk, tokens in zip(parts.stream_ids, parts.chunks, parts.tokens, strict=True):
            stream = streams.get(stream_id)
            # One without a stream was cancelled a moment ago.
            if stream is not None and not stream.pass_on(chunk, tokens or self._count(chunk)):
                self.close(stream_id)

    def _take(self, output: worker_link_pb2.StreamOutput) -> None:
        """Hand one stream what it got, with how it went on beside output."""
        stream = self._streams.get(output.stream_id)
        if stream is None:
            return  # cancelled a moment ago
        chunk = output.chunk
        if chunk and not stream.put(chunk, output.tokens or self._count(chunk)):
            self.close(output.stream_id)
            return
        if output.last:
            del self._streams[output.stream_id]
            if output.HasField("error"):
                refusal = status.from_rpc_status(output.error.status)
                stream.fail(LinkError(Cause.TOLD, refusal))
            else:
                stream.end()

    async def _write(self, call: Call) -> None:
        # One writer: two concurrent writes fail with TOO_MANY_OPERATIONS.
        while True:
            while not self._outgoing:
                self._said.clear()
                await self._said.wait()
            if not await _written(call, self._next().SerializeToString()):
                return

    def _next(self) -> worker_link_pb2.AttachRequest:
        """What waits longest, and with it all that fits: what begins together is one message."""
        first = self._outgoing.popleft()
        if self.version >= MORE and self._outgoing:
            size = first.ByteSize()
            while self._outgoing and (size := size + self._outgoing[0].ByteSize() + _MORE_BYTES) <= MAX_REQUEST_BYTES:
                first.more.append(self._outgoing.popleft())
        return first

    async def _watch(self) -> None:
        while True:
            await tick(self._rules.tick_s)
            now_s = self._clock()
            if self._silence.tick(now_s):
                raise _Silent
            if self._progress is not None and self._progress.tick(now_s, len(self._streams)):
                self._stalled()

    def _sign(self, step: int, load: endpoint_pb2.Load | None) -> None:
        """The server said where its engine is."""
        moved = self._progress is not None and self._progress.sign(step, load)
        if moved and self.state is LinkState.STALLED:
            log.info("engine moves again", extra={"server": self._peer, "step": step})
            self._become(LinkState.UP)
        if load is not None:
            self._on_load(load)

    def _left_out(self, stream_id: int) -> None:
        """The server works on a stream that gets nothing."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        stream.idle_looks += 1
        if stream.idle_looks == self._rules.idle_looks:
            stream.fail(self._stuck("makes no progress with this stream while it does with others"))

    def _stalled(self) -> None:
        """The engine stands still: what runs goes on elsewhere. Closing the streams cancels them on the server."""
        log.warning("engine stalled", extra={"server": self._peer, "streams": len(self._streams)})
        if self.state is LinkState.UP:
            self._become(LinkState.STALLED)
        for stream in self._streams.values():
            stream.fail(self._stuck("stands still: its engine makes no steps"))

    def _stuck(self, how: str) -> LinkError:
        return LinkError(Cause.STUCK, unavailable(f"{self._where} {how}", reason="SERVER_STUCK"))

    def _say(self, request: worker_link_pb2.AttachRequest) -> None:
        self._outgoing.append(request)
        self._said.set()

    def _become(self, state: LinkState) -> None:
        if state is not self.state:
            self.state = state
            self._on_state(state)

    def _lost(self, why: str) -> None:
        """Everything that ran over the link has failed."""
        self._become(LinkState.DOWN)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(LinkError(Cause.LOST, unavailable(f"{self._where} was lost: {why}", reason="SERVER_LOST")))


async def _written(call: Call, data: bytes) -> bool:
    """Whether it went out. On a call that is over grpc has nothing but InvalidStateError; its reader is told why."""
    try:
        await call.write(data)
    except asyncio.InvalidStateError:
        return False
    return True


class _Unwelcome(Exception):
    """Who answered is not who was meant, or speaks a version that this side does not."""


class _Silent(Exception):
    """The server has been silent for too long."""
