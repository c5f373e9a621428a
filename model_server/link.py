"""The server's end of the worker link: a router process attaches, and all of its generations share one stream.

One writer: what the streams got is gathered while the loop works through a step of the engine, and goes up as one
message. When there is nothing to say, a heartbeat goes up, with the engine's step counter and the loop's own lag.
"""

import asyncio
import logging
from collections.abc import Callable

import grpc
import grpc.aio

from discovery.endpoint import Endpoint
from discovery.messages import endpoint_to_proto, load_to_proto
from model_server.digest import Digest, Feed
from model_server.direct import DirectStreams
from model_server.generation import Generator
from model_server.parts import duration
from model_server.progress import Progress, Watch
from stoker.v1 import endpoint_pb2, generation_pb2, inference_pb2, worker_link_pb2
from stoker_common import status, tracing, wire
from stoker_common.clock import Clock
from stoker_common.link.outbox import Outbox
from stoker_common.link.versions import SPOKEN, Versions
from stoker_common.refusal import invalid, unimplemented

log = logging.getLogger(__name__)

SERVICE = "stoker.v1.WorkerLinkService"
# A router calls a server dead after 2 s without a word (DESIGN.md section 6): three of these may be lost.
HEARTBEAT_S = 0.5
# Load goes with steps as well, but a step may come every few milliseconds.
_LOAD_EVERY_S = 0.25
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
        async with wire.guard(context, f"{SERVICE}/Attach"):
            session = LinkSession(
                context,
                self._generator,
                self._direct,
                self._endpoint,
                self._steps,
                self._digest,
                self._clock,
                self.versions,
            )
            self._sessions.add(session)
            try:
                await session.run()
            finally:
                self._sessions.discard(session)


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
    ) -> None:
        self._versions = versions
        self._context = context
        self._generator = generator
        self._direct = direct
        self._router = ""
        # News of streams that clients have here with this router's tickets.
        self._news: list[worker_link_pb2.DirectStream] = []
        self._reminded_s = 0.0
        self._endpoint = endpoint
        self._steps = steps
        self._digest = digest
        self._feed = Feed()
        self._clock = clock
        self._outbox = Outbox()
        self._is_router = True
        self._streams: dict[int, asyncio.Task[None]] = {}
        self._progress: dict[int, Progress] = {}
        self._watch = Watch()
        self._goodbye: worker_link_pb2.Goodbye | None = None
        self._load_sent_s = 0.0

    async def run(self) -> None:
        """Until the router detaches, or the server has left and nothing of the router's runs any more."""
        hello = await self._hello()
        self._router = hello.router
        self._is_router = not hello.client
        log.info("a router attached", extra={"router": hello.router, "zone": hello.zone})
        try:
            async with asyncio.TaskGroup() as tasks:
                writing = tasks.create_task(self._write())
                with self._direct.attached(hello.router, self._direct_news):
                    await self._read(tasks)
                # The router is gone: what runs for it is aborted.
                writing.cancel()
                for stream in self._streams.values():
                    stream.cancel()
        finally:
            self._digest.detach(self._feed)
            log.info("a router detached", extra={"router": hello.router, "zone": hello.zone})

    def goodbye(self, reason: str, grace_s: float) -> None:
        """Tell the router that the server leaves."""
        self._goodbye = worker_link_pb2.Goodbye(reason=reason, grace=duration(grace_s))
        self._outbox.wake()

    async def _hello(self) -> worker_link_pb2.Hello:
        data = await self._context.read()
        if data is grpc.aio.EOF:
            raise invalid("hello", "is missing: the link's first message must be one")
        first = wire.parse(worker_link_pb2.AttachRequest, data)
        if not first.HasField("hello"):
            raise invalid("hello", "is missing: the link's first message must be one")
        theirs = first.hello.link_version
        version = self._versions.answer(theirs)
        if version is None:
            raise invalid("hello.link_version", f"is {theirs}; this server speaks {self._versions}")
        await self._send(
            worker_link_pb2.AttachResponse(
                welcome=worker_link_pb2.Welcome(
                    link_version=version,
                    endpoint=endpoint_to_proto(self._endpoint()),
                    heartbeat_interval=duration(HEARTBEAT_S),
                )
            )
        )
        return first.hello

    async def _read(self, tasks: asyncio.TaskGroup) -> None:
        while (data := await self._context.read()) is not grpc.aio.EOF:
            request = wire.parse(worker_link_pb2.AttachRequest, data)
            if request.HasField("start"):
                stream_id = request.start.stream_id
                self._streams[stream_id] = tasks.create_task(self._serve(stream_id, request.start))
            elif request.HasField("cancel"):
                stream = self._streams.get(request.cancel.stream_id)
                if stream is not None:
                    stream.cancel()
            elif request.HasField("move"):
                self._direct.move(request.move.reservation, request.move.reason)
            elif request.HasField("send_digest") and self._is_router:
                self._digest.attach(self._feed)
                self._outbox.wake()

    def _direct_news(self, news: worker_link_pb2.DirectStream) -> None:
        self._news.append(news)
        self._outbox.wake()

    async def _write(self) -> None:
        due_s = self._clock() + HEARTBEAT_S
        while True:
            # A long digest goes up piece by piece, without waiting for something else to say.
            filled = self._feed.behind or await self._outbox.filled(HEARTBEAT_S)
            if self._goodbye is not None:
                goodbye, self._goodbye = self._goodbye, None
                await self._send(worker_link_pb2.AttachResponse(goodbye=goodbye))
            # All that the loop has ready belongs to this step: let it come in first.
            await asyncio.sleep(0)
            now_s = self._clock()
            idle = self._idle(now_s)
            if now_s - self._reminded_s >= _REMIND_S:
                self._reminded_s = now_s
                self._news.extend(self._direct.running_for(self._router))
            if not filled and not idle and not self._news:
                lag_s = max(0.0, now_s - due_s)
                beat = worker_link_pb2.Heartbeat(
                    step=self._steps(), loop_lag=duration(lag_s), load=self._load(), digest=self._feed.take()
                )
                await self._send(worker_link_pb2.AttachResponse(heartbeat=beat))
            elif idle or self._news or self._feed.behind or not self._outbox.empty:
                step = self._outbox.take(self._steps())
                step.running_without_output.extend(idle)
                step.direct.extend(self._news)
                self._news.clear()
                if now_s - self._load_sent_s >= _LOAD_EVERY_S:
                    self._load_sent_s = now_s
                    step.load.CopyFrom(self._load())
                if (digest := self._feed.take()) is not None:
                    step.digest.CopyFrom(digest)
                await self._send(worker_link_pb2.AttachResponse(step=step))
            due_s = self._clock() + HEARTBEAT_S

    def _idle(self, now_s: float) -> list[int]:
        """Streams that get nothing though the engine works on them."""
        step = self._steps()
        if not self._watch.due(now_s, step):
            return []
        return self._watch.look(now_s, step, self._endpoint().load, self._progress)

    async def _serve(self, stream_id: int, start: worker_link_pb2.StartStream) -> None:
        outbox = self._outbox
        progress = self._progress[stream_id] = Progress()

        async def write(part: inference_pb2.GenerateStreamResponse) -> None:
            outbox.put(stream_id, part.SerializeToString(), sum(len(delta.token_ids) for delta in part.deltas))

        try:
            if start.HasField("window_tokens"):
                raise unimplemented("start.window_tokens", "is not there yet; leave it out")
            generation = wire.parse(generation_pb2.Generation, start.generation)
            remaining_s = start.timeout.ToNanoseconds() / 1e9 if start.HasField("timeout") else None
            parent = tracing.extract((("traceparent", start.traceparent),))
            await self._generator.serve(
                generation, write, remaining_s=remaining_s, parent=parent, progress=progress, ticket=start.ticket
            )
            outbox.end(stream_id)
        except asyncio.CancelledError:
            outbox.drop(stream_id)
            raise
        except Exception as error:
            refusal = wire.refusal_of(error, f"{SERVICE}/Attach")
            details = status.to_rpc_status(refusal)
            outbox.end(
                stream_id,
                worker_link_pb2.StreamError(
                    code=refusal.code.value, message=details.message, status=details.SerializeToString()
                ),
            )
        finally:
            self._streams.pop(stream_id, None)
            self._progress.pop(stream_id, None)

    def _load(self) -> endpoint_pb2.Load:
        return load_to_proto(self._endpoint().load)

    async def _send(self, response: worker_link_pb2.AttachResponse) -> None:
        await self._context.write(response.SerializeToString())
