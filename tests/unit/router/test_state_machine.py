"""Router, breakers, catalog and links through random faults, in virtual time: the promises of RELIABILITY.md hold.

Servers are imitated behind `Transport`: token i of an answer is a function of the prompt and i, and comes every 0.1 s.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from opentelemetry.context import Context

from discovery.catalog import CatalogEntry, CatalogState, CatalogView, ZoneView
from discovery.endpoint import Endpoint, Residency
from router.attempt import Attempt, OnDigest, OnDirect, OnLink, OnLoad, Part
from router.config import RouterSettings
from router.data_path import DataPath
from router.ejection import BreakerState
from router.errors import EndpointError, Fault
from router.ledger import Key
from router.report import Identity
from router.server import RouterServer, World
from stoker.v1 import endpoint_pb2, generation_pb2, inference_pb2, model_pb2
from stoker_common import tracing
from stoker_common.link.state import LinkState
from stoker_common.refusal import Code, Refusal, deadline_exceeded, exhausted, unavailable
from tests.fakes.virtual_loop import VirtualLoop
from tests.unit.router.builders import MODEL, endpoint, key

Message = inference_pb2.GenerateStreamResponse

HOME: dict[str, Any] = {"zone": "a"}
HOLD_S = 10.0
TOKEN_S = 0.1
NAMES = ("a-0", "a-1", "b-0", "b-1")
names = st.sampled_from(NAMES)


def token(prompt: int, number: int) -> int:
    """Token `number` of the answer to a prompt."""
    return (prompt * 7919 + number * 104729) % 50_000


@dataclass(eq=False)
class Server:
    """One life of a server, and what is wrong with it."""

    endpoint: Endpoint
    alive: bool = True
    linked: bool = True
    stalled: bool = False
    busy: bool = False
    failing: bool = False
    slow: bool = False
    state: CatalogState | None = CatalogState.PASSING  # None: not in the catalog at all
    running: dict[object, asyncio.Future[None]] = field(default_factory=dict)
    capable_since_s: float | None = 0.0

    @property
    def capable(self) -> bool:
        well = self.alive and self.linked and not (self.stalled or self.busy or self.failing)
        return well and self.state in (CatalogState.PASSING, CatalogState.CRITICAL)

    def end_all(self, error: EndpointError) -> None:
        for broken in self.running.values():
            if not broken.done():
                broken.set_exception(error)


class FakeTransport:
    """A Transport to `servers`, by key; notes who was asked what."""

    def __init__(self) -> None:
        self.servers: dict[Key, Server] = {}
        # And whether it may be asked again.
        self.asked: dict[str, list[tuple[Key, bool]]] = {}
        self.on_link: OnLink = lambda of, state: None

    async def attempt(self, attempt: Attempt) -> AsyncGenerator[Part, None]:
        endpoint, generation, timeout_s = attempt.endpoint, attempt.generation, attempt.timeout_s
        where, loop = key(endpoint), asyncio.get_running_loop()
        asked = self.asked.setdefault(generation.request_id, [])
        assert all(again for before, again in asked if before == where), asked
        place, got_on = len(asked), False
        asked.append((where, False))
        server = self.servers[where]
        broken: asyncio.Future[None] = loop.create_future()
        server.running[broken] = broken
        ends_s = None if timeout_s is None else loop.time() + timeout_s
        try:
            if not server.alive or not server.linked:
                raise EndpointError(Fault.LINK, unavailable("cannot be reached"))
            if server.busy:
                raise EndpointError(Fault.BUSY, exhausted("full", reason="OVERLOADED", retry_after_s=0.5))
            for message in answer(endpoint, generation):
                wait_s = TOKEN_S * (20 if server.slow else 1)
                late = ends_s is not None and ends_s < loop.time() + wait_s
                if late and ends_s is not None:
                    wait_s = max(0.0, ends_s - loop.time())
                # A stalled engine gives nothing; somebody else ends the attempt.
                await asyncio.wait([broken], timeout=None if server.stalled and not late else wait_s)
                if broken.done():
                    broken.result()
                if late:
                    raise EndpointError(Fault.CALLER, deadline_exceeded("too late"))
                if server.failing and message.deltas:
                    raise EndpointError(Fault.SERVER, unavailable("it fails"))
                got_on = got_on or bool(message.deltas)
                yield Part(message.SerializeToString(), message)
        except EndpointError as error:
            # Where it failed never; where it was only busy, or was suspected after the stream had got on there.
            asked[place] = (where, error.fault is Fault.BUSY or (got_on and error.suspicion))
            raise
        finally:
            del server.running[broken]
            broken.cancel()

    async def answers(self, endpoint: Endpoint, timeout_s: float) -> bool:
        server = self.servers[key(endpoint)]
        return server.alive and server.linked

    async def ready(self, endpoint: Endpoint, model: str) -> AsyncGenerator[model_pb2.ModelProgress, None]:
        raise AssertionError("its model is hot everywhere")
        yield model_pb2.ModelProgress()  # makes it a generator

    async def put_away(
        self, endpoint: Endpoint, model: str, to: Residency, grace_s: float | None
    ) -> endpoint_pb2.Model:
        return endpoint_pb2.Model(name=model)

    async def drain(self, endpoint: Endpoint, grace_s: float | None, timeout_s: float) -> int:
        return 0

    def keep(self, endpoints: Iterable[Endpoint]) -> None: ...

    async def run(self) -> None: ...

    async def reached(self, within_s: float) -> None: ...

    def hear(self, on_direct: OnDirect) -> None:
        """See Transport."""

    def want(self, endpoint: Endpoint) -> None:
        """See Transport."""

    def move(self, endpoint: Endpoint, reservation: bytes, why: str) -> None:
        """See Transport."""

    def listen(self, on_load: OnLoad, on_link: OnLink, on_digest: OnDigest) -> None:
        self.on_link = on_link

    async def close(self) -> None: ...


def answer(of: Endpoint, generation: generation_pb2.Generation) -> Iterable[Message]:
    """The answer, or what of it the client has not received."""
    resumed = generation.HasField("resume")
    prompt = (generation.resume.prompt_token_ids if resumed else generation.token_ids.ids)[0]
    received = len(generation.resume.outputs[0].token_ids) if generation.resume.outputs else 0
    tokens = generation.sampling.max_tokens
    started = inference_pb2.Started(
        model=MODEL, server=of.server, zone=of.zone, prompt_tokens=1, prompt_token_ids=[prompt], numerics_class="n"
    )
    if resumed:
        started.resume_mode = generation.resume.mode
    for number in range(received, tokens):
        part = Message(deltas=[inference_pb2.Delta(token_ids=[token(prompt, number)])])
        if number == received:
            part.started.CopyFrom(started)
        yield part
    last = Message(finished=inference_pb2.Finished(usage=inference_pb2.Usage(completion_tokens=tokens)))
    if received == tokens:
        last.started.CopyFrom(started)
    yield last


class NoWatcher:
    """Nobody reads a catalog: the machine publishes its views itself."""

    async def run(self, publish: Callable[[CatalogView], None]) -> None: ...

    def forget(self, zone: str, lives: Collection[tuple[str, str]]) -> None: ...


@dataclass(eq=False)
class Ask:
    """One request and what its client received."""

    number: int
    tokens: int
    deadline_s: float | None
    received: list[int] = field(default_factory=list)
    finished: bool = False
    refusal: Refusal | None = None
    cancelled: bool = False
    task: asyncio.Task[None] | None = None


class Faults(RuleBasedStateMachine):
    """Two zones of two servers, a router in zone a."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.transport = FakeTransport()
        self.router = RouterServer(
            RouterSettings(**HOME),
            Identity("r", "a", "test", 0.0),
            World(
                watcher=NoWatcher(),
                transport=self.transport,
                traces=tracing.configure("test", environ={}),
                clock=self.loop.time,
                rng=random.Random(1),
            ),
        )
        self.lives: Counter[str] = Counter()
        self.servers: dict[str, Server] = {}
        self.asks: list[Ask] = []
        self.catalog_away = False
        for name in NAMES:
            self.born(name)
        self.data_path = DataPath(self.router.fleet, self.transport, lambda _: None, rng=random.Random(2))
        self.checking = self.loop.create_task(self.data_path.run())
        self.publish()

    # What happens.

    @rule(
        tokens=st.lists(st.integers(5, 80), min_size=1, max_size=4),
        within_s=st.sampled_from([None, None, None, 0.05, 2.0, 8.0]),
        then_s=st.sampled_from([0.0, 0.45, 1.05, 2.0]),
    )
    def ask(self, tokens: list[int], within_s: float | None, then_s: float) -> None:
        """Some requests at once, and the time in which they begin."""
        for count in tokens:
            ask = Ask(len(self.asks), count, None if within_s is None else self.loop.time() + within_s)
            self.asks.append(ask)
            ask.task = self.loop.create_task(self.asking(ask))
        self.pass_s(then_s)

    @precondition(lambda self: any(ask.task and not ask.task.done() for ask in self.asks))
    @rule(data=st.data())
    def the_client_goes(self, data: st.DataObject) -> None:
        ask = data.draw(st.sampled_from([ask for ask in self.asks if ask.task and not ask.task.done()]))
        ask.cancelled = True
        if ask.task is not None:
            ask.task.cancel()
        self.pass_s(0.0)

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.0, 3.0, 12.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.pass_s(seconds)

    @rule(seconds=st.sampled_from([0.0, 1.0, 12.0]))
    def all_is_well_again(self, seconds: float) -> None:
        for name in NAMES:
            server = self.servers[name]
            server.busy = server.failing = server.slow = False
            if not server.alive:
                self.restarts(name)
            self.link_is_up(name)
            self.moves_again(name)
            self.servers[name].state = CatalogState.PASSING
        self.publish()
        self.pass_s(seconds)

    @rule(name=names)
    def dies(self, name: str) -> None:
        name = self.in_use(name)
        self.servers[name].alive = False
        self.link_lost(name)

    @rule(name=names)
    def restarts(self, name: str) -> None:
        """On the same port, with the next epoch; what the old life did is lost."""
        self.servers[name].alive = False
        self.link_lost(name)
        self.born(name)
        self.publish()
        self.link_is_up(name)

    @rule(name=names)
    def link_breaks(self, name: str) -> None:
        self.link_lost(self.in_use(name))

    @rule(name=names)
    def link_is_up(self, name: str) -> None:
        server = self.servers[name]
        if server.alive:
            server.linked = True
            self.transport.on_link(server.endpoint, LinkState.UP)
        self.pass_s(0.0)

    @rule(name=names)
    def stalls(self, name: str) -> None:
        """Its engine stands still; the link notices 2 s later."""
        name = self.in_use(name)
        server = self.servers[name]
        server.stalled = True
        self.pass_s(2.25)
        if server is self.servers[name] and server.linked:
            self.transport.on_link(server.endpoint, LinkState.STALLED)
        server.end_all(EndpointError(Fault.SERVER, unavailable("stands still", reason="SERVER_STUCK")))
        self.pass_s(0.0)

    @rule(name=names)
    def moves_again(self, name: str) -> None:
        server = self.servers[name]
        if server.stalled:
            server.stalled = False
            if server.linked:
                self.transport.on_link(server.endpoint, LinkState.UP)
        self.pass_s(0.0)

    @rule(name=names, what=st.sampled_from(["busy", "failing", "slow"]), on=st.booleans())
    def behaves(self, name: str, what: str, on: bool) -> None:
        setattr(self.servers[self.in_use(name) if on else name], what, on)
        self.pass_s(0.0)

    @rule(name=names, state=st.sampled_from([*CatalogState, None]))
    def catalog_says(self, name: str, state: CatalogState | None) -> None:
        self.servers[name].state = state
        self.publish()

    # What must hold.

    @invariant()
    def every_stream_is_what_it_should_be(self) -> None:
        for ask in self.asks:
            whole = [token(ask.number, number) for number in range(ask.tokens)]
            assert ask.received == whole[: len(ask.received)], "lost, repeated or out of order"
            if ask.finished:
                assert ask.received == whole
            if ask.task is not None and ask.task.done() and not ask.cancelled:
                ask.task.result()
                assert ask.finished or ask.refusal is not None

    @invariant()
    def breakers_are_sound(self) -> None:
        breakers = self.router.learned.breakers
        for where, server in self.transport.servers.items():
            if breakers.state(where) is BreakerState.PROBING:
                assert server.running, "a probe without a request would last for ever"
            assert 0.0 < breakers.share(where) <= 1.0
            assert breakers.ejected_for_s(where) <= 300.0 * 1.1
            assert bool(breakers.cause(where)) == (breakers.state(where) is not BreakerState.ALIVE)
        assert all(0.0 <= share <= 1.0 for share in breakers.zone_shares.values())

    @invariant()
    def what_is_booked_runs(self) -> None:
        accounts = self.router.learned.ledger.accounts
        for where, server in self.transport.servers.items():
            if where in accounts:
                assert accounts[where].own_streams == len(server.running)
                assert accounts[where].own_prompt_tokens >= 0

    def teardown(self) -> None:
        """Everything is well again: what was accepted ends well, nothing is left."""
        for name in NAMES:
            self.born(name)
        self.publish()
        for server in self.transport.servers.values():
            if server is not self.servers[server.endpoint.server]:
                server.end_all(EndpointError(Fault.LINK, unavailable("its next life began")))
        self.pass_s(60.0)
        self.every_stream_is_what_it_should_be()
        assert all(ask.task is not None and ask.task.done() for ask in self.asks), "a request hangs"
        ledger = self.router.learned.ledger
        assert ledger.in_flight == 0
        assert all(not (each.own_streams or each.own_prompt_tokens) for each in ledger.accounts.values())
        assert self.router.registry.get_sample_value("stoker_router_in_flight") == 0
        self.checking.cancel()
        self.pass_s(0.0)
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    # How.

    def in_use(self, name: str) -> str:
        """`name`, or a server that has something to lose if that one has not."""
        if self.servers[name].running:
            return name
        return max(NAMES, key=lambda other: (len(self.servers[other].running), other == name))

    def link_lost(self, name: str) -> None:
        server = self.servers[name]
        if server.linked:
            server.linked = False
            self.transport.on_link(server.endpoint, LinkState.DOWN)
        server.end_all(EndpointError(Fault.LINK, unavailable("the link broke", reason="SERVER_LOST")))
        self.pass_s(0.0)

    def born(self, name: str) -> None:
        self.lives[name] += 1
        of = endpoint(name, name[0], epoch=f"{name}-e{self.lives[name]}", numerics_class="n")
        of = replace(of, resume_modes=("prefill", "replay", "restore"), link_version=1)
        self.servers[name] = self.transport.servers[key(of)] = Server(of)
        self.note()

    def publish(self) -> None:
        zones: dict[str, dict[str, CatalogEntry]] = {"a": {}, "b": {}}
        for name, server in self.servers.items():
            if server.state is not None:
                zones[name[0]][name] = CatalogEntry(server.endpoint, server.state)
        self.router.fleet.publish(CatalogView({zone: ZoneView(zone, there, 0.0) for zone, there in zones.items()}))
        self.pass_s(0.0)

    def note(self) -> None:
        for server in self.servers.values():
            if not server.capable:
                server.capable_since_s = None
            elif server.capable_since_s is None:
                server.capable_since_s = self.loop.time()

    def pass_s(self, seconds: float) -> None:
        self.note()
        self.loop.run_until_complete(asyncio.sleep(seconds))
        if not seconds:
            for _ in range(20):  # whoever was woken does what he can
                self.loop.run_until_complete(asyncio.sleep(0))
        self.note()

    async def asking(self, ask: Ask) -> None:
        generation = generation_pb2.Generation(
            model=MODEL,
            request_id=f"r{ask.number}",
            token_ids=generation_pb2.TokenIds(ids=[ask.number]),
            sampling=generation_pb2.Sampling(max_tokens=ask.tokens),
        )
        try:
            async with aclosing(self.router.router.generate(generation, ask.deadline_s, Context())) as parts:
                async for data in parts:
                    part = Message.FromString(data)
                    ask.received += [token_id for delta in part.deltas for token_id in delta.token_ids]
                    ask.finished = ask.finished or part.HasField("finished")
        except Refusal as refusal:
            ask.refusal = refusal
            self.judge(ask, refusal)

    def judge(self, ask: Ask, refusal: Refusal) -> None:
        """No accepted stream fails while a server that it may ask could have gone on with it all the time."""
        now_s = self.loop.time()
        if refusal.code is Code.DEADLINE_EXCEEDED or not ask.received:
            return
        if ask.deadline_s is not None and now_s >= ask.deadline_s - 1e-6:
            return
        asked = self.transport.asked.get(f"r{ask.number}", [])
        tried = {where for where, again in asked if not again}
        for server in self.servers.values():
            since_s = server.capable_since_s
            untried = key(server.endpoint) not in tried
            if server.capable and untried and since_s is not None and since_s <= now_s - HOLD_S + 0.5:
                raise AssertionError(f"failed with {refusal} while {server.endpoint.server} could go on with it")


TestFaults = Faults.TestCase
TestFaults.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,  # The gate must not be a lottery; whoever looks for more takes it out.
    suppress_health_check=list(HealthCheck),
)
