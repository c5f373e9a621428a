"""Reaches endpoints over worker links where they are up, and call by call where they are not."""

import asyncio
import random
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, suppress

from discovery.endpoint import Endpoint, Residency
from discovery.messages import load_from_proto
from router.attempt import Attempt, OnDigest, OnDirect, OnLink, OnLoad, Part
from router.call_transport import CallTransport
from router.errors import EndpointError, Fault, endpoint_error
from router.ledger import Key
from stoker.v1 import endpoint_pb2, model_pb2, worker_link_pb2
from stoker_common.backoff import Backoff
from stoker_common.clock import Clock
from stoker_common.link.client import Link, LinkRules
from stoker_common.link.state import Cause, LinkError, LinkState
from stoker_common.link.versions import SPOKEN, Versions
from stoker_common.parts import tokens_in
from stoker_common.refusal import unavailable

_FAULTS = {Cause.LOST: Fault.LINK, Cause.STUCK: Fault.SERVER, Cause.SLOW_READER: Fault.CALLER}
# A link that broke is tried again soon: a restarted server is up within seconds; and not all routers at once.
_RETRY_FIRST_S, _RETRY_MOST_S = 0.1, 2.0


class LinkTransport:
    """A `Transport`. Links to the servers of the home zone are always open, those to others from their first use on."""

    def __init__(
        self,
        calls: CallTransport,
        *,
        router: str,
        zone: str,
        clock: Clock,
        rng: random.Random,
        rules: LinkRules,
        versions: Versions = SPOKEN,
    ) -> None:
        self._calls = calls
        self._versions = versions
        self._hello = worker_link_pb2.Hello(link_version=versions.highest, router=router, zone=zone)
        self._zone = zone
        self._clock = clock
        self._rng = rng
        self._rules = rules
        self._endpoints: dict[Key, Endpoint] = {}
        self._used: set[Key] = set()
        self._links: dict[Key, tuple[Link, asyncio.Task[None]]] = {}
        self._changed = asyncio.Event()
        # Whether there is a link wherever one is wanted.
        self._made = asyncio.Event()
        self._on_load: OnLoad = lambda endpoint, load: None
        self._on_direct: OnDirect = lambda endpoint, news: None
        self._on_link: OnLink = lambda endpoint, state: None
        self._on_digest: OnDigest = lambda endpoint, digest: True

    def listen(self, on_load: OnLoad, on_link: OnLink, on_digest: OnDigest) -> None:
        """See `Transport`."""
        self._on_load, self._on_link, self._on_digest = on_load, on_link, on_digest

    async def attempt(self, attempt: Attempt) -> AsyncGenerator[Part, None]:
        """See `Transport`."""
        endpoint = attempt.endpoint
        key = (endpoint.server, endpoint.epoch)
        self._use(key)
        link, _ = self._links.get(key, (None, None))
        if link is not None and link.elsewhere:
            text = f"{_where(endpoint)} is gone: another one answers at its address"
            raise EndpointError(Fault.LINK, unavailable(text, reason="SERVER_LOST"))
        linked = link is not None and link.state in (LinkState.UP, LinkState.STALLED)
        if link is None or not linked or not link.fits(asked := attempt.generation.SerializeToString()):
            async with aclosing(self._calls.attempt(attempt)) as parts:
                async for part in parts:
                    yield part
            return
        stream_id, stream = link.open(asked, attempt.timeout_s, attempt.metadata)
        attempt.interrupt.bind(stream.fail, stream.waiting)
        if attempt.relay is not None:
            stream.relay(attempt.relay)
        try:
            while (data := await stream.take()) is not None:
                yield Part(data, tokens=stream.tokens)
        except LinkError as error:
            raise _endpoint_error(error, endpoint) from error
        finally:
            link.close(stream_id)

    async def drain(self, endpoint: Endpoint, grace_s: float | None, timeout_s: float) -> int:
        """See `Transport`."""
        return await self._calls.drain(endpoint, grace_s, timeout_s)

    def ready(self, endpoint: Endpoint, model: str) -> AsyncGenerator[model_pb2.ModelProgress, None]:
        """See `Transport`."""
        return self._calls.ready(endpoint, model)

    async def put_away(
        self, endpoint: Endpoint, model: str, to: Residency, grace_s: float | None
    ) -> endpoint_pb2.Model:
        """See `Transport`."""
        return await self._calls.put_away(endpoint, model, to, grace_s)

    async def answers(self, endpoint: Endpoint, timeout_s: float) -> bool:
        """See `Transport`. A link that is up is the answer: its heartbeats are. And where it found another one, health
        is that one's."""
        link, _ = self._links.get((endpoint.server, endpoint.epoch), (None, None))
        if link is not None and (link.elsewhere or link.state is LinkState.UP):
            return not link.elsewhere
        return await self._calls.answers(endpoint, timeout_s)

    def keep(self, endpoints: Iterable[Endpoint]) -> None:
        """See `Transport`."""
        self._endpoints = {(endpoint.server, endpoint.epoch): endpoint for endpoint in endpoints}
        self._used &= self._endpoints.keys()
        self._calls.keep(self._endpoints.values())
        self._change()

    async def run(self) -> None:
        """See `Transport`: keeps the links that are wanted."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._calls.run())
            while True:
                self._changed.clear()
                wanted = {key for key, endpoint in self._endpoints.items() if self._wants(key, endpoint)}
                for key in self._links.keys() - wanted:
                    self._links.pop(key)[1].cancel()
                for key in wanted - self._links.keys():
                    link = self._link(key, self._endpoints[key])
                    self._links[key] = link, tasks.create_task(link.run(), name=f"link {key[0]}")
                self._made.set()
                await self._changed.wait()

    async def reached(self, within_s: float) -> None:
        """See `Transport`: each link has been up or could not be had."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._made.wait()
                for link, _ in list(self._links.values()):
                    await link.tried.wait()

    def hear(self, on_direct: OnDirect) -> None:
        """See `Transport`."""
        self._on_direct = on_direct

    def want(self, endpoint: Endpoint) -> None:
        """See `Transport`: its link, also to a server of another zone."""
        self._use((endpoint.server, endpoint.epoch))

    def move(self, endpoint: Endpoint, reservation: bytes, why: str) -> None:
        """See `Transport`."""
        link, _ = self._links.get((endpoint.server, endpoint.epoch), (None, None))
        if link is not None:
            link.move(reservation, why)

    async def close(self) -> None:
        """See `Transport`."""
        await self._calls.close()

    def _use(self, key: Key) -> None:
        if key not in self._used:
            self._used.add(key)
            self._change()

    def _change(self) -> None:
        self._made.clear()
        self._changed.set()

    def _wants(self, key: Key, endpoint: Endpoint) -> bool:
        # The record tells its highest; whether it still speaks ours, its answer does.
        return endpoint.link_version >= self._versions.lowest and (endpoint.zone == self._zone or key in self._used)

    def _link(self, key: Key, endpoint: Endpoint) -> Link:
        return Link(
            endpoint.server,
            _where(endpoint),
            self._calls.channel(key, endpoint.address),
            self._hello,
            self._rules,
            Backoff(self._rng, _RETRY_FIRST_S, _RETRY_MOST_S),
            self._clock,
            lambda load: self._on_load(endpoint, load_from_proto(load)),
            lambda state: self._on_link(endpoint, state),
            lambda digest: self._on_digest(endpoint, digest),
            on_direct=lambda news: self._on_direct(endpoint, news),
            versions=self._versions,
            # A server of before does not count its chunks' tokens, and what the router learns is made of them.
            count=tokens_in,
            epoch=endpoint.epoch,
        )


def _where(endpoint: Endpoint) -> str:
    return f"server {endpoint.server} at {endpoint.address} in {endpoint.zone}"


def _endpoint_error(error: LinkError, endpoint: Endpoint) -> EndpointError:
    """What a stream that failed on a link says of its endpoint."""
    if error.cause is Cause.TOLD:
        return endpoint_error(error.refusal, endpoint, cut=False)
    return EndpointError(_FAULTS[error.cause], error.refusal)
