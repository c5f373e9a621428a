"""The router's end of a client's link: one stream for all of that client's generations.

A token costs grpc's Python stack a message on each side, unless it shares one: what all of a client's streams got in
one turn of the loop goes out as one `Step`. The protocol is the one that routers speak to servers.
"""

import asyncio
import logging
from contextlib import aclosing

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry, Gauge

from discovery.messages import seconds
from router.entry import Entry
from stoker.v1 import worker_link_pb2
from stoker_common import wire
from stoker_common.clock import Clock
from stoker_common.link.hello import hear_hello, heard
from stoker_common.link.outbox import Outbox
from stoker_common.link.served import Ask, ServedStreams, Start
from stoker_common.link.versions import COLUMNS, SPOKEN, Versions
from stoker_common.link.writer import HEARTBEAT_S, LinkWriter
from stoker_common.refusal import Refusal, unavailable

log = logging.getLogger(__name__)

SERVICE = "stoker.v1.WorkerLinkService"


class ClientLinks:
    """All clients that are attached to this router."""

    def __init__(self, entry: Entry, clock: Clock, registry: CollectorRegistry) -> None:
        self._entry = entry
        self._clock = clock
        self._links: set[ClientLink] = set()
        self._count = Gauge(
            # Of several processes, the sum of those that live.
            "stoker_router_client_links",
            "Clients that are attached: those with several streams at once.",
            registry=registry,
            multiprocess_mode="livesum",
        )
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
        async with wire.Guard(context, f"{SERVICE}/Attach"):
            if self._leaving:
                raise _leaves()
            link = ClientLink(context, self._entry, self._clock)
            self._links.add(link)
            try:
                with self._count.track_inprogress():
                    await link.run()
            finally:
                self._links.discard(link)


class ClientLink:
    """One attached client."""

    def __init__(self, context: wire.Context, entry: Entry, clock: Clock, versions: Versions = SPOKEN) -> None:
        self._versions = versions
        self._context = context
        self._entry = entry
        self._outbox = Outbox()
        self._writer = LinkWriter(self._outbox, context.write, clock)
        self._streams = ServedStreams(self._outbox, f"{SERVICE}/Attach", self._serve, self._route)
        self._steps = 0
        self._leaving = False

    async def run(self) -> None:
        """Until the client detaches, or the router leaves and nothing of the client's runs any more."""
        hello = await self._hello()
        about = {"client": hello.router, "zone": hello.zone}
        log.info("a client attached", extra=about)
        try:
            async with asyncio.TaskGroup() as tasks:
                ends = [tasks.create_task(self._write()), tasks.create_task(self._read(tasks))]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                self._streams.cancel()
                for task in ends:
                    task.cancel()
        finally:
            log.info("a client detached", extra=about)

    def goodbye(self) -> None:
        """Nothing new comes in."""
        self._leaving = True
        goodbye = worker_link_pb2.Goodbye(reason="the router drains")
        self._outbox.say(worker_link_pb2.AttachResponse(goodbye=goodbye))

    async def _hello(self) -> worker_link_pb2.Hello:
        hello, version = hear_hello(await self._context.read(), self._versions, "router")
        self._outbox.columns = version >= COLUMNS
        welcome = worker_link_pb2.Welcome(link_version=version, heartbeat_interval=seconds(HEARTBEAT_S))
        await self._writer.send(worker_link_pb2.AttachResponse(welcome=welcome))
        return hello

    async def _read(self, tasks: asyncio.TaskGroup) -> None:
        while (data := await self._context.read()) is not grpc.aio.EOF:
            for request in heard(data):
                self._streams.take(request, tasks)

    async def _write(self) -> None:
        writer = self._writer
        while not (self._leaving and not self._streams and self._outbox.empty):
            # What came with one step of a server's engine wakes many streams: all of them put it in first.
            await writer.turn()
            if not self._outbox.empty:
                self._steps += 1
                await writer.send(self._outbox.take(self._steps))
            elif writer.due:
                beat = worker_link_pb2.Heartbeat(step=self._steps, loop_lag=seconds(writer.lag_s))
                await writer.send(worker_link_pb2.AttachResponse(heartbeat=beat))

    async def _serve(self, start: Start) -> None:
        if self._leaving:
            raise _leaves()
        share = self._outbox.share(start.stream_id)
        async with aclosing(self._entry.generate(start.generation, start.remaining_s, start.parent, share)) as parts:
            async for data in parts:
                self._outbox.put(start.stream_id, data, 0)

    async def _route(self, ask: Ask) -> None:
        if self._leaving:
            raise _leaves()
        response = await self._entry.route(ask.request, ask.remaining_s, ask.parent)
        self._outbox.put(ask.stream_id, response.SerializeToString(), 0)


def _leaves() -> Refusal:
    return unavailable("this router drains; ask another", reason="ROUTER_DRAINING", retry_after_s=0.0)
