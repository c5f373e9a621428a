"""The SDK: an async client of a mesh."""

import random
import uuid
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Literal, Self, TypedDict, TypeVar, Unpack

from google.protobuf.duration_pb2 import Duration
from opentelemetry import trace

from stoker.v1 import (
    endpoint_pb2,
    generation_pb2,
    inference_pb2,
    model_pb2,
    operations_pb2,
    router_pb2,
    worker_link_pb2,
)
from stoker.v1.model_pb2_grpc import ModelServiceStub as Models
from stoker.v1.operations_pb2_grpc import OperationsServiceStub
from stoker.v1.router_pb2_grpc import RouterServiceStub
from stoker_client.addresses import Addresses
from stoker_client.calls import Calls
from stoker_client.direct import DirectRouters, Mode
from stoker_client.generation import build
from stoker_client.options import Options, Turn
from stoker_client.peer import OF_SERVERS, LinkUse, Peer
from stoker_client.relay import HOLD_S, ResumeRules, Routers, relayed
from stoker_client.results import Chunk, Completion
from stoker_client.servers import Servers
from stoker_client.sources import source
from stoker_client.stream import Stream
from stoker_common.backoff import Backoff
from stoker_common.channel import Http2
from stoker_common.channels import check
from stoker_common.fold import Fold
from stoker_common.link.versions import SPOKEN

# Both are what a model that is readied answers.
Readied = TypeVar("Readied", model_pb2.LoadModelResponse, model_pb2.WakeModelResponse)


class Settings(TypedDict, total=False):
    """What a client may be given beside addresses; `Client` says what each means."""

    timeout_s: float | None
    connect_timeout_s: float
    resume_within_s: float
    tracer: trace.Tracer | None
    mode: Literal["auto", "direct", "relay"]
    http2: Http2


class Client:
    """A client of the mesh behind one or several routers (or model servers: they serve the same calls).

    An address is `host:port`, `name:port` (each of the name's DNS records is a router) or `consul://host:port` (a
    Consul agent, whose zone's routers come first). Addresses are tried in that order, a name's or a zone's routers in
    an order of this client's own, until one answers. When one is lost while it answers, another one goes on, and the
    caller sees one answer (docs/adr/0043). Several streams at once share a link to their router (docs/adr/0105).
    Belongs to the event loop that first uses it; `async with` or `close()` closes its channels.

        async with Client("127.0.0.1:7070") as client:
            answer = await client.generate("The capital of France is", model="SmolLM2-135M-Instruct", temperature=0)
            print(answer.text)
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        timeout_s: float | None = None,
        connect_timeout_s: float = 5.0,
        resume_within_s: float = HOLD_S,
        tracer: trace.Tracer | None = None,
        mode: Literal["auto", "direct", "relay"] = "relay",
        http2: Http2 = "grpc",
    ) -> None:
        """`timeout_s` bounds a whole call unless the call says otherwise (None: no bound); `connect_timeout_s` what one
        address may take to connect before the next one's turn; `resume_within_s` how long a router is looked for to go
        on with an answer, since its last part came. `tracer` makes a span for each call, by default the one that the
        application has set up for OpenTelemetry, if it has. `mode`: whether answers come through routers (`relay`),
        from the servers that routers name (`direct`), or from servers where they can be reached and else through
        routers (`auto`): docs/adr/0108. In each, another one goes on with what one can no longer answer. `http2`: whose
        HTTP/2 they are reached by, gRPC's own or `stoker`, which costs less with many streams (docs/adr/0152).
        Raises ValueError where it cannot reach an address (`unix:`)."""
        forms = [addresses] if isinstance(addresses, str) else list(addresses)
        if not forms:
            raise ValueError("a client needs at least one address, host:port")
        for form in forms:
            if not form.startswith("consul://"):
                check(http2, form)
        self._http2 = http2
        self._rng = random.Random()
        self._hello = worker_link_pb2.Hello(
            link_version=SPOKEN.highest, router=f"client-{uuid.uuid4().hex[:12]}", client=True
        )
        self._addresses = Addresses([source(form, self._rng) for form in forms], connect_timeout_s, self._router)
        self._servers = Servers(self._server)
        self._mode = Mode(mode)
        self._rules = ResumeRules(resume_within_s)
        self._calls = Calls(self._addresses, timeout_s, tracer or trace.get_tracer("stoker_client"))

    @classmethod
    def from_consul(cls, address: str = "127.0.0.1:8500", **settings: Unpack[Settings]) -> Self:
        """A client of the routers that the Consul agent at `address` knows. `settings` are the constructor's."""
        return cls(f"consul://{address}", **settings)

    async def generate(
        self,
        prompt: str | None = None,
        *,
        model: str,
        messages: Iterable[Turn | generation_pb2.ChatMessage] | None = None,
        token_ids: Iterable[int] | None = None,
        timeout_s: float | None = None,
        **options: Unpack[Options],
    ) -> Completion:
        """The whole answer to exactly one of `prompt`, `messages` and `token_ids`. Raises StokerError."""
        generation, fold = build(prompt, messages, token_ids, model, options), Fold()
        # As a stream: what a lost router has sent of it is not computed again.
        async with aclosing(self._relayed("generate", generation, timeout_s)) as parts:
            async for part in parts:
                fold.add(part)
        return Completion(fold.response())

    def stream(
        self,
        prompt: str | None = None,
        *,
        model: str,
        messages: Iterable[Turn | generation_pb2.ChatMessage] | None = None,
        token_ids: Iterable[int] | None = None,
        timeout_s: float | None = None,
        **options: Unpack[Options],
    ) -> Stream:
        """The same answer as it comes. The call begins with the first `async for`; leaving the loop cancels it."""
        return Stream(self._stream(build(prompt, messages, token_ids, model, options), timeout_s))

    async def models(self, *, zone: str = "", model: str = "") -> Sequence[model_pb2.ModelOnServer]:
        """Every model on every server, or those of one zone or of one model. Raises StokerError."""
        request = model_pb2.ListModelsRequest(zone=zone, model=model)
        response = await self._calls.one("models", lambda channel: Models(channel).ListModels, request)
        return response.models

    def load_model(
        self, model: str, *, server: str = "", timeout_s: float | None = None
    ) -> AsyncGenerator[model_pb2.ModelProgress, None]:
        """Make a model hot, on one server or where that is the cheapest: how far it is, at last with residency HOT.

        Leaving the loop stops listening; the server goes on. Raises StokerError.
        """
        request = model_pb2.LoadModelRequest(target=model_pb2.ModelTarget(model=model, server=server))
        return _progress(self._calls.many("load_model", lambda channel: Models(channel).LoadModel, request, timeout_s))

    def wake_model(
        self, model: str, *, server: str = "", timeout_s: float | None = None
    ) -> AsyncGenerator[model_pb2.ModelProgress, None]:
        """Make a sleeping model hot; otherwise as `load_model`. Raises StokerError."""
        request = model_pb2.WakeModelRequest(target=model_pb2.ModelTarget(model=model, server=server))
        return _progress(self._calls.many("wake_model", lambda channel: Models(channel).WakeModel, request, timeout_s))

    async def sleep_model(self, model: str, *, server: str = "", grace_s: float | None = None) -> endpoint_pb2.Model:
        """Move a hot model's weights to host memory, or out of memory where it cannot sleep; where it is then.

        What runs on it has `grace_s` (None: until it has ended), then it goes on elsewhere. Raises StokerError.
        """
        target = model_pb2.ModelTarget(model=model, server=server)
        request = model_pb2.SleepModelRequest(target=target, grace=_duration(grace_s))
        response = await self._calls.one("sleep_model", lambda channel: Models(channel).SleepModel, request)
        return response.model

    async def unload_model(self, model: str, *, server: str = "", grace_s: float | None = None) -> endpoint_pb2.Model:
        """Drop a model from memory; otherwise as `sleep_model`. Raises StokerError."""
        target = model_pb2.ModelTarget(model=model, server=server)
        request = model_pb2.UnloadModelRequest(target=target, grace=_duration(grace_s))
        response = await self._calls.one("unload_model", lambda channel: Models(channel).UnloadModel, request)
        return response.model

    async def status(self, *, zone: str = "") -> router_pb2.StatusResponse:
        """What the router sees: zones, servers, models, load, breakers. Raises StokerError."""
        request = router_pb2.StatusRequest(zone=zone)
        return await self._calls.one("status", lambda channel: RouterServiceStub(channel).Status, request)

    async def drain(self, server: str, *, grace_s: float | None = None) -> operations_pb2.DrainServerResponse:
        """Make a server leave; after `grace_s` (None: its own) its streams go on elsewhere. Raises StokerError."""
        request = operations_pb2.DrainServerRequest(server=server, grace=_duration(grace_s))
        return await self._calls.one("drain", lambda channel: OperationsServiceStub(channel).DrainServer, request)

    async def explain(
        self,
        prompt: str | None = None,
        *,
        model: str,
        messages: Iterable[Turn | generation_pb2.ChatMessage] | None = None,
        token_ids: Iterable[int] | None = None,
        **options: Unpack[Options],
    ) -> router_pb2.ExplainResponse:
        """What the request would cost on every server, term by term in ms; it is sent nowhere. Raises StokerError."""
        request = router_pb2.ExplainRequest(generation=build(prompt, messages, token_ids, model, options))
        return await self._calls.one("explain", lambda channel: RouterServiceStub(channel).Explain, request)

    def _server(self, address: str) -> Peer:
        return Peer(address, self._hello, OF_SERVERS, Backoff(self._rng, 0.1, 2.0), http2=self._http2)

    def _router(self, address: str) -> Peer:
        return Peer(address, self._hello, LinkUse(), Backoff(self._rng, 0.1, 2.0), http2=self._http2)

    async def _stream(
        self, generation: generation_pb2.Generation, timeout_s: float | None
    ) -> AsyncGenerator[Chunk, None]:
        async with aclosing(self._relayed("stream", generation, timeout_s)) as parts:
            async for part in parts:
                yield Chunk(part)

    async def _relayed(
        self, name: str, generation: generation_pb2.Generation, timeout_s: float | None
    ) -> AsyncGenerator[inference_pb2.GenerateStreamResponse, None]:
        """The parts of the answer, through as many routers as it takes."""
        deadline = self._calls.deadline(timeout_s)
        with self._calls.traced(name) as metadata:
            routers: Routers = self._addresses
            if self._mode is not Mode.RELAY:
                routers = DirectRouters(self._addresses, self._servers, self._mode)
            answer = relayed(routers, generation, metadata, deadline, rules=self._rules, rng=self._rng)
            async with aclosing(answer) as parts:
                async for part in parts:
                    yield part

    async def close(self) -> None:
        """Close the channels. Calls that still run fail with CANCELLED."""
        await self._servers.close()
        await self._addresses.close()

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _duration(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    made = Duration()
    made.FromNanoseconds(round(seconds * 1e9))
    return made


async def _progress(responses: AsyncGenerator[Readied, None]) -> AsyncGenerator[model_pb2.ModelProgress, None]:
    async with aclosing(responses) as news:
        async for response in news:
            yield response.progress
