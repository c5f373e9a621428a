"""The router's end of a client's link: one stream for all of that client's generations.

A token costs grpc's Python stack a message on each side, unless it shares one: what all of a client's streams got in
one turn of the loop goes out as one `Step`. The protocol is the one that routers speak to servers.
"""

import asyncio
import logging
from contextlib import aclosing

import grpc
import grpc.aio

from discovery.messages import seconds
from router.entry import Entry
from stoker.v1 import generation_pb2, worker_link_pb2
from stoker_common import status, tracing, wire
from stoker_common.clock import Clock
from stoker_common.link.outbox import Outbox
from stoker_common.link.versions import SPOKEN, Versions
from stoker_common.refusal import Refusal, invalid, unavailable, unimplemented

log = logging.getLogger(__name__)

SERVICE = "stoker.v1.WorkerLinkService"
# A client calls its router dead after 2 s without a word: three of these may be lost.
HEARTBEAT_S = 0.5


class ClientLinks:
    """All clients that are attached to this router."""

    def __init__(self, entry: Entry, clock: Clock) -> None:
        self._entry = entry
        self._clock = clock
        self._links: set[ClientLink] = set()
        self._leaving = False

    @property
    def attached(self) -> int:
        """How many clients are attached. Also for other threads."""
        return len(self._links)

    def handler(self) -> grpc.GenericRpcHandler:
        """The service for `server.add_generic_rpc_handlers`."""
        return wire.service(SERVICE, {"Attach": grpc.stream_stream_rpc_method_handler(self._attach)})

    def goodbye(self) -> None:
        """The router drains: nothing new comes in, and each link ends with its last stream."""
        self._leaving = True
        for link in self._links:
            link.goodbye()

    async def _attach(self, _: object, context: wire.Context) -> None:
        async with wire.guard(context, f"{SERVICE}/Attach"):
            if self._leaving:
                raise _leaves()
            link = ClientLink(context, self._entry, self._clock)
            self._links.add(link)
            try:
                await link.run()
            finally:
                self._links.discard(link)


class ClientLink:
    """One attached client."""

    def __init__(self, context: wire.Context, entry: Entry, clock: Clock, versions: Versions = SPOKEN) -> None:
        self._versions = versions
        self._context = context
        self._entry = entry
        self._clock = clock
        self._outbox = Outbox()
        self._streams: dict[int, asyncio.Task[None]] = {}
        self._steps = 0
        self._leaving = False
        self._told = False

    async def run(self) -> None:
        """Until the client detaches, or the router leaves and nothing of the client's runs any more."""
        hello = await self._hello()
        about = {"client": hello.router, "zone": hello.zone}
        log.info("a client attached", extra=about)
        try:
            async with asyncio.TaskGroup() as tasks:
                ends = [tasks.create_task(self._write()), tasks.create_task(self._read(tasks))]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                for task in (*ends, *self._streams.values()):
                    task.cancel()
        finally:
            log.info("a client detached", extra=about)

    def goodbye(self) -> None:
        """Nothing new comes in."""
        self._leaving = True
        self._outbox.wake()

    async def _hello(self) -> worker_link_pb2.Hello:
        data = await self._context.read()
        first = wire.parse(worker_link_pb2.AttachRequest, b"" if data is grpc.aio.EOF else data)
        if not first.HasField("hello"):
            raise invalid("hello", "is missing: the link's first message must be one")
        theirs = first.hello.link_version
        version = self._versions.answer(theirs)
        if version is None:
            raise invalid("hello.link_version", f"is {theirs}; this router speaks {self._versions}")
        welcome = worker_link_pb2.Welcome(link_version=version, heartbeat_interval=seconds(HEARTBEAT_S))
        await self._send(worker_link_pb2.AttachResponse(welcome=welcome))
        return first.hello

    async def _read(self, tasks: asyncio.TaskGroup) -> None:
        while (data := await self._context.read()) is not grpc.aio.EOF:
            request = wire.parse(worker_link_pb2.AttachRequest, data)
            if request.HasField("start"):
                stream_id = request.start.stream_id
                if stream_id in self._streams:
                    raise invalid("start.stream_id", f"{stream_id} is in use; give each stream a number of its own")
                self._streams[stream_id] = tasks.create_task(self._serve(stream_id, request.start))
            elif request.HasField("cancel"):
                stream = self._streams.get(request.cancel.stream_id)
                if stream is not None:
                    stream.cancel()

    async def _write(self) -> None:
        due_s = self._clock() + HEARTBEAT_S
        while not (self._leaving and not self._streams and self._outbox.empty):
            filled = await self._outbox.filled(HEARTBEAT_S)
            if self._leaving and not self._told:
                self._told = True
                goodbye = worker_link_pb2.Goodbye(reason="the router drains")
                await self._send(worker_link_pb2.AttachResponse(goodbye=goodbye))
            # What came with one step of a server's engine wakes many streams: let all of them put it in first.
            await asyncio.sleep(0)
            if not self._outbox.empty:
                self._steps += 1
                await self._send(worker_link_pb2.AttachResponse(step=self._outbox.take(self._steps)))
            elif not filled:
                lag = seconds(max(0.0, self._clock() - due_s))
                beat = worker_link_pb2.Heartbeat(step=self._steps, loop_lag=lag)
                await self._send(worker_link_pb2.AttachResponse(heartbeat=beat))
            due_s = self._clock() + HEARTBEAT_S

    async def _serve(self, stream_id: int, start: worker_link_pb2.StartStream) -> None:
        outbox = self._outbox
        try:
            if self._leaving:
                raise _leaves()
            if start.HasField("window_tokens"):
                raise unimplemented("start.window_tokens", "is not there yet; leave it out")
            generation = wire.parse(generation_pb2.Generation, start.generation)
            remaining_s = start.timeout.ToNanoseconds() / 1e9 if start.HasField("timeout") else None
            parent = tracing.extract((("traceparent", start.traceparent),))
            async with aclosing(self._entry.generate(generation, remaining_s, parent)) as parts:
                async for data in parts:
                    outbox.put(stream_id, data, 0)
            outbox.end(stream_id)
        except asyncio.CancelledError:
            outbox.drop(stream_id)
            raise
        except Exception as error:
            refusal = wire.refusal_of(error, f"{SERVICE}/Attach")
            details = status.to_rpc_status(refusal)
            failure = worker_link_pb2.StreamError(
                code=refusal.code.value, message=details.message, status=details.SerializeToString()
            )
            outbox.end(stream_id, failure)
        finally:
            self._streams.pop(stream_id, None)

    async def _send(self, response: worker_link_pb2.AttachResponse) -> None:
        await self._context.write(response.SerializeToString())


def _leaves() -> Refusal:
    return unavailable("this router drains; ask another", reason="ROUTER_DRAINING", retry_after_s=0.0)
