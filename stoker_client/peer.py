"""One router, or one server, that a client reaches: by a call a stream, and over one link once it has several."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from stoker.v1 import (
    generation_pb2,
    inference_pb2,
    inference_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
    worker_link_pb2,
)
from stoker_client.call import Metadata, raising_stoker_error
from stoker_client.errors import StokerError
from stoker_common.backoff import Backoff
from stoker_common.channel import Http2
from stoker_common.channels import channel
from stoker_common.clock import Clock
from stoker_common.link.client import Link, LinkRules
from stoker_common.link.state import Cause, LinkError, LinkState
from stoker_common.link.stream import LinkStream
from stoker_common.link.versions import ROUTES
from stoker_common.refusal import Code

log = logging.getLogger(__name__)

Part = inference_pb2.GenerateStreamResponse
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class LinkUse:
    """When a client attaches. Its first stream needs no link; a second one at the same time pays for it."""

    streams: int = 2
    # A link without streams costs both sides two messages a second.
    idle_s: float = 5.0
    # So many seconds between two questions for a server are worth one, too: a call costs the router much more.
    asks_s: float = 1.0
    # After an attach that came to nothing: an older router, a proxy that takes no such streams.
    again_s: float = 10.0
    # How long a stream waits for the link that is being made. Else a burst would be as many calls to the end.
    wait_s: float = 0.25
    # A router has no engine whose steps could be watched.
    rules: LinkRules = field(default_factory=lambda: LinkRules(stalled_s=None))


# A server is attached to from the first stream on: its link shows at once when the server is silent, or its engine
# stands still, as a router's does.
OF_SERVERS = LinkUse(streams=1, wait_s=0.5, rules=LinkRules())


class Peer:
    """A channel to one address, and the link on it while there is one. Belongs to one event loop."""

    def __init__(
        self,
        address: str,
        hello: worker_link_pb2.Hello,
        use: LinkUse,
        backoff: Backoff,
        clock: Clock = time.monotonic,
        http2: Http2 = "grpc",
    ) -> None:
        """`http2`: whose HTTP/2 reaches it. Raises ValueError for an address that Stoker's cannot reach."""
        self.address = address
        self.channel = channel(http2, address)
        self._use = use
        self._clock = clock
        self.in_flight = 0
        self._calls = 0
        self._closed = False
        # Whether its link has come up since it was down, and is not about to go.
        self._came_up = False
        self._attached: asyncio.Task[None] | None = None
        self._not_before_s = float("-inf")
        self._asked_s = float("-inf")
        self._news = asyncio.Event()
        self._link = Link(
            address, f"the peer at {address}", self.channel, hello, use.rules, backoff, clock, _ignore, self._changed
        )

    @property
    def busy(self) -> bool:
        """Whether anything is under way on it."""
        return bool(self.in_flight or self._calls)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Around a call on its channel."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    @property
    def linked(self) -> bool:
        """Whether its streams go over a link now."""
        return self._link.state is LinkState.UP

    async def stream(
        self, generation: generation_pb2.Generation, metadata: Metadata, timeout_s: float | None
    ) -> AsyncGenerator[Part, None]:
        """The parts of its answer. Raises StokerError; closing it cancels the request."""
        self.in_flight += 1
        try:
            if self.in_flight >= self._use.streams:
                self._attach()
                await self._up()
            if self.linked and self._link.fits(asked := generation.SerializeToString()):
                begin = partial(self._link.open, asked, timeout_s, metadata)
                way = self._over_link(begin, timeout_s, Part.FromString)
            else:
                way = self._by_call(generation, metadata, timeout_s)
            async with aclosing(way) as parts:
                async for part in parts:
                    yield part
        finally:
            self.in_flight -= 1

    @property
    def who(self) -> str:
        """What failures call it."""
        return f"router {self.address}"

    @property
    def server(self) -> None:
        """Where it sends a call shows in the answer."""
        return None

    async def route(
        self, request: router_pb2.RouteRequest, metadata: Metadata, timeout_s: float | None
    ) -> router_pb2.RouteResponse:
        """A server, reserved by this router: over the link once it is asked often. Raises StokerError."""
        with self.used():
            return await self._route(request, metadata, timeout_s)

    async def _route(
        self, request: router_pb2.RouteRequest, metadata: Metadata, timeout_s: float | None
    ) -> router_pb2.RouteResponse:
        before_s, self._asked_s = self._asked_s, self._clock()
        if self._asked_s - before_s < self._use.asks_s:
            # For the questions to come: this one does not wait for it.
            self._attach()
        if self.linked and self._link.version >= ROUTES and Link.fits(asked := request.SerializeToString()):
            begin = partial(self._link.ask, asked, timeout_s, metadata)
            async with aclosing(self._over_link(begin, timeout_s, router_pb2.RouteResponse.FromString)) as answers:
                async for answer in answers:
                    return answer
            raise StokerError(Code.INTERNAL, f"{self.who} answered a question for a server with nothing")
        call = router_pb2_grpc.RouterServiceStub(self.channel).Route(request, metadata=metadata, timeout=timeout_s)
        try:
            with raising_stoker_error():
                response: router_pb2.RouteResponse = await call
                return response
        finally:
            call.cancel()

    async def release(self, request: router_pb2.ReleaseRequest, timeout_s: float) -> None:
        """Give back what this router reserved. Raises StokerError."""
        with self.used(), raising_stoker_error():
            await router_pb2_grpc.RouterServiceStub(self.channel).Release(request, timeout=timeout_s)

    async def close(self) -> None:
        """Close it; what runs fails with CANCELLED."""
        self._closed = True
        if self._attached is not None:
            self._attached.cancel()
            await asyncio.wait((self._attached,))
        await self.channel.close()

    async def _by_call(
        self, generation: generation_pb2.Generation, metadata: Metadata, timeout_s: float | None
    ) -> AsyncGenerator[Part, None]:
        request = inference_pb2.GenerateStreamRequest(generation=generation)
        call = inference_pb2_grpc.InferenceServiceStub(self.channel).GenerateStream(
            request, metadata=metadata, timeout=timeout_s
        )
        try:
            with raising_stoker_error():
                async for part in call:
                    yield part
        finally:
            # An abandoned call runs on: grpc does not cancel it by itself.
            call.cancel()

    async def _over_link(
        self, begin: Callable[[], tuple[int, LinkStream]], timeout_s: float | None, read: Callable[[bytes], Answer]
    ) -> AsyncGenerator[Answer, None]:
        stream_id, stream = begin()
        late = None
        if timeout_s is not None:
            # The peer ends it then as well, if it still can.
            late = asyncio.get_running_loop().call_later(timeout_s, stream.fail, _late())
        try:
            while (data := await stream.take()) is not None:
                yield read(data)
        except LinkError as error:
            raise self._error(error) from error
        finally:
            if late is not None:
                late.cancel()
            self._link.close(stream_id)

    def _error(self, error: LinkError) -> StokerError:
        """What a stream's failure is to its caller: as it would be on a call."""
        told = StokerError.of(error.refusal)
        if error.cause is not Cause.LOST:
            return told
        if self._closed:
            text = "the call was cancelled: its client was closed"
            return StokerError(Code.CANCELLED, text, reason="CLIENT_CLOSED")
        # gRPC names no reason for a call whose connection broke.
        return StokerError(Code.UNAVAILABLE, told.message)

    def _attach(self) -> None:
        """See to it that there will be a link. Until it is up, streams are calls."""
        if self._attached is None and not self._closed and self._clock() >= self._not_before_s:
            self._attached = asyncio.get_running_loop().create_task(self._hold(), name=f"link {self.address}")

    def _changed(self, state: LinkState) -> None:
        if state is not LinkState.DOWN:
            # One that said goodbye is expected to go.
            self._came_up = state is not LinkState.LEAVING
        self._news.set()

    async def _up(self) -> None:
        """Wait for the link that is being made, as long as a stream may."""
        try:
            async with asyncio.timeout(self._use.wait_s):
                # One that leaves is not coming.
                while self._attached is not None and self._link.state is LinkState.DOWN:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return

    async def _hold(self) -> None:
        """One link's life: until it breaks, or has had no streams for a while."""
        # Only a link that was up may be tried again at once.
        self._not_before_s = self._clock() + self._use.again_s
        self._came_up = False
        try:
            link = asyncio.ensure_future(self._link.attach())
            try:
                await self._until_idle(link)
            finally:
                link.cancel()
                await asyncio.wait((link,))
        finally:
            self._attached = None
            self._news.set()

    async def _until_idle(self, link: "asyncio.Future[str]") -> None:
        idle_since_s = self._clock()
        while not link.done():
            await asyncio.wait((link,), timeout=self._use.idle_s / 4)
            if self._link.state is not LinkState.DOWN:
                self._not_before_s = self._clock()
            idle_since_s = max(idle_since_s, self._asked_s)
            if self._link.streams:
                idle_since_s = self._clock()
            elif self._clock() - idle_since_s >= self._use.idle_s:
                return
        self._tell(link.result())

    def _tell(self, why: str) -> None:
        """Say in the log that the link is down again. Whoever offers none is no news: it is called."""
        if self._came_up:
            text = "the link to %s was lost: %s; what ran on it goes on elsewhere or fails, and what begins is a call"
            log.warning(text, self.address, why)
        else:
            log.info("no link to %s: %s; what begins is a call", self.address, why)


def _ignore(_: object) -> None:
    """A client picks no servers: neither load nor state are its business."""


def _late() -> StokerError:
    return StokerError(Code.DEADLINE_EXCEEDED, "the deadline passed before the answer was whole")
