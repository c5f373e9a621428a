"""The router's end of a worker link: one stream to one server, for all of this process's generations there."""

import asyncio
import itertools
import logging
from dataclasses import dataclass

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration

from discovery.backoff import Backoff
from discovery.endpoint import Endpoint, Load
from discovery.messages import load_from_proto
from router.attempt import LinkState, Metadata, OnLink, OnLoad
from router.errors import EndpointError, Fault, endpoint_error
from router.link_stream import LinkStream
from router.progress import Progress
from router.silence import Silence
from stoker.v1 import generation_pb2, worker_link_pb2
from stoker_common import status
from stoker_common.clock import Clock
from stoker_common.refusal import unavailable

log = logging.getLogger(__name__)

VERSION = 1
METHOD = "/stoker.v1.WorkerLinkService/Attach"

Call = grpc.aio.StreamStreamCall[bytes, bytes]


@dataclass(frozen=True, slots=True)
class LinkRules:
    """Limits of a link. Sources: DESIGN.md sections 4 and 6."""

    # A server sends a heartbeat every 0.5 s at least.
    silent_s: float = 2.0
    tick_s: float = 0.25
    # An engine whose step counter stands still while it has streams running.
    stalled_s: float = 2.0
    # A stream that its server's steps leave out so often, 0.5 s apart.
    idle_looks: int = 4
    # A slow client's unread answer: some minutes of text.
    stream_bytes: int = 1 << 20
    connect_s: float = 2.0


class Link:
    """One server's link. `run` keeps it up; `open` starts a generation while it is up."""

    def __init__(
        self,
        endpoint: Endpoint,
        channel: grpc.aio.Channel,
        hello: worker_link_pb2.Hello,
        rules: LinkRules,
        backoff: Backoff,
        clock: Clock,
        on_load: OnLoad,
        on_state: OnLink,
    ) -> None:
        self._endpoint = endpoint
        self._channel = channel
        self._hello = hello
        self._rules = rules
        self._backoff = backoff
        self._clock = clock
        self._on_load = on_load
        self._on_state = on_state
        self._ids = itertools.count(1)
        self._streams: dict[int, LinkStream] = {}
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self._silence = Silence(rules.silent_s, 2 * rules.tick_s, clock())
        self._progress = Progress(rules.stalled_s, 2 * rules.tick_s, clock())
        self.state = LinkState.DOWN

    async def run(self) -> None:
        """Attach, and attach again whenever the link breaks, until cancelled."""
        try:
            while True:
                why = await self._attach_once()
                self._lost(why)
                log.warning("link down", extra={"server": self._endpoint.server, "why": why})
                await asyncio.sleep(self._backoff.delay_s())
        finally:
            self._lost("the router let go of it")

    def open(
        self, generation: generation_pb2.Generation, timeout_s: float | None, metadata: Metadata
    ) -> tuple[int, LinkStream]:
        """Start a generation; returns its number and its stream. Only while the link is UP."""
        stream_id = next(self._ids)
        stream = self._streams[stream_id] = LinkStream(self._rules.stream_bytes)
        start = worker_link_pb2.StartStream(
            stream_id=stream_id,
            generation=generation.SerializeToString(),
            traceparent=dict(metadata).get("traceparent", ""),
        )
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

    async def _attach_once(self) -> str:
        """Why the link is down again."""
        why = "the server ended it"
        try:
            await self._attached()
        except* grpc.aio.AioRpcError as group:
            error = group.exceptions[0]
            why = (error.details() or error.code().name) if isinstance(error, grpc.aio.AioRpcError) else str(error)
        except* (_Silent, TimeoutError):
            why = f"no sign of life for {self._rules.silent_s:g} s"
        return why

    async def _attached(self) -> None:
        call: Call = self._channel.stream_stream(METHOD)()
        try:
            await _written(call, worker_link_pb2.AttachRequest(hello=self._hello).SerializeToString())
            async with asyncio.timeout(self._rules.connect_s):
                first = await call.read()
            if first is grpc.aio.EOF:
                return
            self._outgoing = asyncio.Queue()
            self._silence.heard()
            self._progress.begin()
            self._backoff.reset()
            self._become(LinkState.UP)
            async with asyncio.TaskGroup() as tasks:
                helpers = [tasks.create_task(self._write(call)), tasks.create_task(self._watch())]
                await self._read(call)
                for helper in helpers:
                    helper.cancel()
        finally:
            call.cancel()

    async def _read(self, call: Call) -> None:
        while isinstance(data := await call.read(), bytes):
            self._silence.heard()
            response = worker_link_pb2.AttachResponse.FromString(data)
            if response.HasField("step"):
                step = response.step
                for output in step.outputs:
                    self._take(output)
                for stream_id in step.running_without_output:
                    self._left_out(stream_id)
                self._sign(step.step, load_from_proto(step.load) if step.HasField("load") else None)
            elif response.HasField("heartbeat"):
                self._sign(response.heartbeat.step, load_from_proto(response.heartbeat.load))
            elif response.HasField("goodbye"):
                log.info("server leaves", extra={"server": self._endpoint.server, "reason": response.goodbye.reason})
                self._become(LinkState.LEAVING)

    def _take(self, output: worker_link_pb2.StreamOutput) -> None:
        """Hand one stream what it got. Runs once a token and stream."""
        stream = self._streams.get(output.stream_id)
        if stream is None:
            return  # cancelled a moment ago
        if output.chunk and not stream.put(output.chunk):
            self.close(output.stream_id)
            return
        if output.last:
            del self._streams[output.stream_id]
            if output.HasField("error"):
                refusal = status.from_rpc_status(output.error.status)
                stream.fail(endpoint_error(refusal, self._endpoint, cut=False))
            else:
                stream.end()

    async def _write(self, call: Call) -> None:
        # One writer: two concurrent writes fail with TOO_MANY_OPERATIONS.
        while await _written(call, await self._outgoing.get()):
            pass

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._rules.tick_s)
            now_s = self._clock()
            if self._silence.tick(now_s):
                raise _Silent
            if self._progress.tick(now_s, len(self._streams)):
                self._stalled()

    def _sign(self, step: int, load: Load | None) -> None:
        """The server said where its engine is."""
        moved = self._progress.sign(step, load)
        if moved and self.state is LinkState.STALLED:
            log.info("engine moves again", extra={"server": self._endpoint.server, "step": step})
            self._become(LinkState.UP)
        if load is not None:
            self._on_load(self._endpoint, load)

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
        log.warning("engine stalled", extra={"server": self._endpoint.server, "streams": len(self._streams)})
        if self.state is LinkState.UP:
            self._become(LinkState.STALLED)
        for stream in self._streams.values():
            stream.fail(self._stuck("stands still: its engine makes no steps"))

    def _stuck(self, how: str) -> EndpointError:
        where = f"server {self._endpoint.server} at {self._endpoint.address} in {self._endpoint.zone}"
        return EndpointError(Fault.SERVER, unavailable(f"{where} {how}", reason="SERVER_STUCK"))

    def _say(self, request: worker_link_pb2.AttachRequest) -> None:
        self._outgoing.put_nowait(request.SerializeToString())

    def _become(self, state: LinkState) -> None:
        if state is not self.state:
            self.state = state
            self._on_state(self._endpoint, state)

    def _lost(self, why: str) -> None:
        """Everything that ran over the link has failed."""
        self._become(LinkState.DOWN)
        streams, self._streams = self._streams, {}
        where = f"server {self._endpoint.server} at {self._endpoint.address} in {self._endpoint.zone}"
        for stream in streams.values():
            refusal = unavailable(f"{where} was lost: {why}", reason="SERVER_LOST")
            stream.fail(EndpointError(Fault.LINK, refusal))


async def _written(call: Call, data: bytes) -> bool:
    """Whether it went out. On a call that is over grpc has nothing but InvalidStateError; its reader is told why."""
    try:
        await call.write(data)
    except asyncio.InvalidStateError:
        return False
    return True


class _Silent(Exception):
    """The server has been silent for too long."""
