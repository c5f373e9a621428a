"""A router that says what a test tells it to, over real gRPC."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc

from stoker.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    pick_pb2,
    router_pb2,
    router_pb2_grpc,
)
from stoker_common.refusal import Refusal
from stoker_common.status import abort

Context = grpc.aio.ServicerContext[Any, Any]
Part = inference_pb2.GenerateStreamResponse


def started(server: str) -> Part:
    """The first part of an answer by `server`."""
    return Part(started=inference_pb2.Started(server=server, zone="zone-a", model="m", prompt_tokens=3))


def delta(text: str, *ids: int) -> Part:
    """A part with text."""
    return Part(deltas=[inference_pb2.Delta(text=text, token_ids=ids)])


class FakeRouter:
    """Answers with `parts`, then fails with `refusal` if there is one, then waits if it shall `hang`.

    Told nothing, it gives a whole answer.
    """

    def __init__(self) -> None:
        self.parts: list[Part] | None = None
        self.refusal: Refusal | None = None
        self.hang = False
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []
        self.cancelled = asyncio.Event()
        self.asked = asyncio.Event()
        self.address = ""
        self.models = ["m"]

    async def GenerateStream(
        self, request: inference_pb2.GenerateStreamRequest, context: Context
    ) -> AsyncIterator[Part]:
        """As it comes."""
        self._note(request, context)
        with self._left_early():
            for part in self._parts():
                yield part
            if self.refusal is not None:
                await abort(context, self.refusal)
            await self._hang()

    async def Status(self, request: router_pb2.StatusRequest, context: Context) -> router_pb2.StatusResponse:
        """Who it is."""
        self._note(request, context)
        return router_pb2.StatusResponse(router=self.address, zone=request.zone)

    async def Explain(self, request: router_pb2.ExplainRequest, context: Context) -> router_pb2.ExplainResponse:
        """One candidate and one that is excluded."""
        self._note(request, context)
        answer = router_pb2.ExplainResponse(chosen="s1", prompt_tokens=3)
        cost = pick_pb2.Cost(prefill_ms=0.5, ramp_ms=0.75, total_ms=1.25)
        first = pick_pb2.FirstToken(queue_ms=3.0, prefill_ms=40.0, rest_ms=7.5)
        answer.candidates.add(server="s1", zone="zone-a", cost=cost, first_token=first)
        answer.candidates.add(server="s2", zone="zone-b", excluded_by="ejected [for 30 s]")
        return answer

    async def ListModels(self, request: model_pb2.ListModelsRequest, context: Context) -> model_pb2.ListModelsResponse:
        """The models, each on one server."""
        self._note(request, context)
        answer = model_pb2.ListModelsResponse()
        for name in self.models:
            answer.models.add(server="s1", zone="zone-a").model.name = name
        return answer

    # Not called in these tests, but the service has to have them.
    LoadModel = SleepModel = WakeModel = UnloadModel = Route = Release = Generate = ListModels

    def _parts(self) -> list[Part]:
        if self.parts is not None:
            return self.parts
        if self.refusal is not None or self.hang:
            return []
        last = inference_pb2.Delta(text="Paris", token_ids=[1], finish_reason=inference_pb2.FINISH_REASON_STOP)
        return [started(self.address), Part(deltas=[last]), Part(finished=inference_pb2.Finished())]

    def _note(self, request: Any, context: Context) -> None:
        self.requests.append(request)
        self.asked.set()
        self.metadata.append(dict(context.invocation_metadata() or ()))

    @contextmanager
    def _left_early(self) -> Iterator[None]:
        """Notes a call that ends by cancellation, or by nobody reading on."""
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def _hang(self) -> None:
        if self.hang:
            await asyncio.Event().wait()


@asynccontextmanager
async def serving(port: int = 0, **said: Any) -> AsyncIterator[FakeRouter]:
    """A fake router on a free port (or on this one), its attributes set to `said`."""
    router = FakeRouter()
    for name, value in said.items():
        setattr(router, name, value)
    server = grpc.aio.server()
    add: list[Callable[[Any, Any], None]] = [
        inference_pb2_grpc.add_InferenceServiceServicer_to_server,
        router_pb2_grpc.add_RouterServiceServicer_to_server,
        model_pb2_grpc.add_ModelServiceServicer_to_server,
    ]
    for one in add:
        one(router, server)
    router.address = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    await server.start()
    try:
        yield router
    finally:
        await server.stop(None)
