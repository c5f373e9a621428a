"""The server's end of the worker link: a router process attaches, and all of its generations share one stream.

One writer: what the streams got is gathered while the loop works through a step of the engine, and goes up as one
message. When there is nothing to say, a heartbeat goes up, with the engine's step counter and the loop's own lag.
"""

import asyncio
import logging
import math
from collections.abc import Callable

import grpc
import grpc.aio

from discovery.endpoint import Endpoint
from discovery.messages import endpoint_to_proto, load_to_proto
from model_server.bids import Bids, Coming
from model_server.digest import Digest, Feed
from model_server.direct import DirectStreams
from model_server.generation import Generator
from model_server.news import News
from model_server.parts import duration
from model_server.progress import Progress, Watch
from stoker.v1 import endpoint_pb2, worker_link_pb2
from stoker_common import wire
from stoker_common.bid import OUTBID
from stoker_common.clock import Clock
from stoker_common.link.hello import hear_hello, heard
from stoker_common.link.outbox import Outbox
from stoker_common.link.served import ServedStreams, Start
from stoker_common.link.versions import COLUMNS, SPOKEN, Versions
from stoker_common.link.writer import HEARTBEAT_S, LinkWriter
from stoker_common.refusal import Refusal

log = logging.getLogger(__name__)

SERVICE = "stoker.v1.WorkerLinkService"
# Load goes with steps as well, but a step may come every few milliseconds.
_LOAD_EVERY_S = 0.25
# Streams that begin together come in one message, and each is a millisecond of work or more at its start: so many, and
# heartbeats and other streams' tokens have a turn of the loop.
_A_TURN = 8
# A router that hears nothing of a reservation for some 10 s takes it for gone: two of these may be lost.
_REMIND_S = 3.0


class Links:
    """All routers that are attached to this server."""

    def __init__(
        self,
        generator: Generator,
        direct: DirectStreams,
        endpoint: Callable[[], Endpoint],
        steps: Callable[[], int],
        digest: Digest,
        clock: Clock,
        bids: Bids,
    ) -> None:
        # What is spoken here; each session speaks the highest that its router does, too.
        self.versions = SPOKEN
        self._generator = generator
        self._direct = direct
        self._endpoint = endpoint
        self._steps = steps
        self._digest = digest
        self._clock = clock
        self._sessions: set[LinkSession] = set()
        self._bids = bids

    @property
    def attached(self) -> int:
        """How many routers are attached."""
        return len(self._sessions)

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service's methods."""
        return wire.service(SERVICE, {"Attach": grpc.stream_stream_rpc_method_handler(self._attach)})

    def goodbye(self, reason: str, grace_s: float) -> None:
        """Tell all routers that the server leaves, and how long it still serves what runs."""
        for session in self._sessions:
            session.goodbye(reason, grace_s)

    async def _attach(self, _: object, context: wire.Context) -> None:
        async with wire.Guard(context, f"{SERVICE}/Attach"):
            session = LinkSession(
                context,
                self._generator,
                self._direct,
                self._endpoint,
                self._steps,
                self._digest,
                self._clock,
                self.versions,
                self._bids,
            )
            self._sessions.add(session)
            try:
                await session.run()
            finally:
                self._sessions.discard(session)


class _Put:
    """Implements `out.Out`: a stream's share of the outbox, which has limits of its own. `coming`: its prompt."""

    __slots__ = ("_coming", "_outbox", "_share", "_stream_id")

    def __init__(self, outbox: Outbox, stream_id: int, coming: Coming) -> None:
        self._outbox = outbox
        self._stream_id = stream_id
        self._share = outbox.share(stream_id).put
        self._coming: Coming | None = coming

    def put(self, part: bytes, tokens: int) -> None:
        """See Out."""
        if tokens and self._coming is not None:
            self._coming.computed()
            self._coming = None
        self._outbox.put(self._stream_id, part, tokens)

    def put_plain(self, part: bytes, tokens: int) -> None:
        """See Out."""
        if self._coming is not None or not self._share(part, tokens):
            # Says why it has no room.
            self.put(part, tokens)

    async def written(self) -> None:
        """See Out. The link's writer is not waited for: it sends when it can."""


class LinkSession:
    """One attached router."""

    def __init__(
        self,
        context: wire.Context,
        generator: Generator,
        direct: DirectStreams,
        endpoint: Callable[[], Endpoint],
        steps: Callable[[], int],
        digest: Digest,
        clock: Clock,
        versions: Versions,
        bids: Bids,
    ) -> None:
        self._versions = versions
        self._bids = bids
        self._context = context
        self._generator = generator
        self._direct = direct
        self._router = ""
        self._reminded_s = 0.0
        self._endpoint = endpoint
        self._steps = steps
        self._digest = digest
        self._feed = Feed()
        self._clock = clock
        self._outbox = Outbox()
        # Of streams that clients have here with this router's tickets.
        self._news = News(clock, asyncio.get_running_loop().call_later, self._outbox.wake, self._urgent)
        self._writer = LinkWriter(self._outbox, context.write, clock)
        self._is_router = True
        self._leaving = False
        self._streams = ServedStreams(self._outbox, f"{SERVICE}/Attach", self._serve)
        self._progress: dict[int, Progress] = {}
        self._watch = Watch()
        self._load_sent_s = -math.inf

    async def run(self) -> None:
        """Until the router detaches, or the server has left and nothing of the router's runs any more."""
        hello = await self._hello()
        self._router = hello.router
        self._is_router = not hello.client
        log.info("a router attached", extra={"router": hello.router, "zone": hello.zone})
        try:
            async with asyncio.TaskGroup() as tasks:
                writing = tasks.create_task(self._write())
                with self._direct.attached(hello.router, self._news.add):
                    await self._read(tasks)
                # The router is gone: what runs for it is aborted.
                writing.cancel()
                self._streams.cancel()
        finally:
            self._digest.detach(self._feed)
            log.info("a router detached", extra={"router": hello.router, "zone": hello.zone})

    def goodbye(self, reason: str, grace_s: float) -> None:
        """Tell the router that the server leaves."""
        self._leaving = True
        goodbye = worker_link_pb2.Goodbye(reason=reason, grace=duration(grace_s))
        self._outbox.say(worker_link_pb2.AttachResponse(goodbye=goodbye))

    async def _hello(self) -> worker_link_pb2.Hello:
        hello, version = hear_hello(await self._context.read(), self._versions, "server")
        self._outbox.columns = version >= COLUMNS
        welcome = worker_link_pb2.Welcome(
            link_version=version,
            endpoint=endpoint_to_proto(self._endpoint()),
            heartbeat_interval=duration(HEARTBEAT_S),
        )
        await self._writer.send(worker_link_pb2.AttachResponse(welcome=welcome))
        return hello

    async def _read(self, tasks: asyncio.TaskGroup) -> None:
        while (data := await self._context.read()) is not grpc.aio.EOF:
            for number, request in enumerate(heard(data), 1):
                if number % _A_TURN == 0:
                    await asyncio.sleep(0)
                if self._streams.take(request, tasks):
                    continue
                if request.HasField("move"):
                    self._direct.move(request.move.reservation, request.move.reason)
                elif request.HasField("send_digest") and self._is_router:
                    self._digest.attach(self._feed)
                    self._outbox.wake()

    async def _write(self) -> None:
        writer = self._writer
        while True:
            # A long digest goes up piece by piece, without waiting for something else to say.
            await writer.turn(at_once=self._feed.behind)
            now_s = self._clock()
            idle = self._idle(now_s)
            if now_s - self._reminded_s >= _REMIND_S:
                self._reminded_s = now_s
                for running in self._direct.running_for(self._router):
                    self._news.add(running)
            if idle or self._news.due or self._feed.behind or not self._outbox.empty:
                await writer.send(self._step(idle, now_s))
            elif writer.due:
                beat = worker_link_pb2.Heartbeat(
                    step=self._steps(), loop_lag=duration(writer.lag_s), load=self._load(), digest=self._feed.take()
                )
                await writer.send(worker_link_pb2.AttachResponse(heartbeat=beat))

    def _step(self, idle: list[int], now_s: float) -> worker_link_pb2.AttachResponse:
        """All that there is to say."""
        response = self._outbox.take(self._steps())
        step = response.step
        step.running_without_output.extend(idle)
        self._news.take(step)
        if now_s - self._load_sent_s >= _LOAD_EVERY_S:
            self._load_sent_s = now_s
            step.load.CopyFrom(self._load())
        if (digest := self._feed.take()) is not None:
            step.digest.CopyFrom(digest)
        return response

    def _idle(self, now_s: float) -> list[int]:
        """Streams that get nothing though the engine works on them."""
        step = self._steps()
        if not self._watch.due(now_s, step):
            return []
        return self._watch.look(now_s, step, self._endpoint().load, self._progress)

    async def _serve(self, start: Start) -> None:
        stream_id = start.stream_id
        progress = self._progress[stream_id] = Progress()

        try:
            with self._bids.take(start.bid) as coming:
                await self._generator.serve(
                    start.generation,
                    _Put(self._outbox, stream_id, coming),
                    remaining_s=start.remaining_s,
                    parent=start.parent,
                    progress=progress,
                    ticket=start.ticket,
                )
        except Refusal as refusal:
            if refusal.reason == OUTBID:
                # The router picks anew, and the load goes up before the refusal.
                self._load_sent_s = -math.inf
            raise
        finally:
            del self._progress[stream_id]

    def _urgent(self) -> bool:
        endpoint = self._endpoint()
        return self._leaving or endpoint.load.running + endpoint.load.waiting >= endpoint.max_streams

    def _load(self) -> endpoint_pb2.Load:
        return load_to_proto(self._endpoint().load)
