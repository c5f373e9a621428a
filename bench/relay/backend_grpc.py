"""A mock model server for gRPC: `python -m bench.relay.backend_grpc --port 9000 --consul 127.0.0.1:8500`.

Speaks plain calls and the worker link, makes no effort at all for a token, and registers in Consul.
All streams get a token at the same moment, as from an engine's step. `--http2 stoker` where several routers are to be
kept busy: a message costs gRPC's server more than this mock costs in all.
"""

import argparse
import asyncio
import itertools
import random
from collections.abc import Iterator

import grpc
import uvloop

from bench.relay.script import MODEL, ONCE_TOKENS, PACED, STAMP_DIGITS, STEP_MS, UNPACED, stamp
from discovery.consul_client import ConsulClient
from discovery.consul_registrar import ConsulRegistrar
from discovery.endpoint import Endpoint, Load, ModelState, Residency
from discovery.messages import load_to_proto
from stoker.v1 import generation_pb2, inference_pb2, worker_link_pb2
from stoker_common import servers, wire
from stoker_common.channel import Http2
from stoker_common.link.hello import hear_hello, heard
from stoker_common.link.versions import COLUMNS, SPOKEN

ME = "mock"
HEARTBEAT_S = 0.4
LOAD = Load(prefill_tokens_per_second=1e6, itl_ms=STEP_MS)
TOKEN_ID = 1000
# A token's part around its text: all tokens are alike but for when they were made.
_BEFORE, _AFTER = (
    inference_pb2.GenerateStreamResponse(deltas=[inference_pb2.Delta(text="#" * STAMP_DIGITS, token_ids=[TOKEN_ID])])
    .SerializeToString()
    .split(b"#" * STAMP_DIGITS)
)


class Answer:
    """One generation: its first part, its tokens, its last."""

    def __init__(self, generation: generation_pb2.Generation, server: str) -> None:
        self._server = server
        self.how = generation.text.split(" ", 1)[0]
        self.left = generation.sampling.max_tokens
        self._made = 0
        self._request_id = generation.request_id

    def first(self) -> bytes:
        """What tells that it began."""
        started = inference_pb2.Started(
            request_id=self._request_id,
            model=MODEL,
            server=self._server,
            zone="zone-a",
            epoch=self._server,
            prompt_tokens=8,
            prompt_token_ids=range(8),
        )
        return inference_pb2.GenerateStreamResponse(started=started).SerializeToString()

    def token(self, now: str) -> bytes:
        """The next token, made now, with the last part's content if it is the last."""
        self.left -= 1
        self._made += 1
        if self.left > 0:
            return b"".join((_BEFORE, now.encode(), _AFTER))
        part = inference_pb2.GenerateStreamResponse(deltas=[inference_pb2.Delta(text=now, token_ids=[TOKEN_ID])])
        part.deltas[0].finish_reason = inference_pb2.FINISH_REASON_LENGTH
        part.finished.usage.prompt_tokens = 8
        part.finished.usage.completion_tokens = self._made
        return part.SerializeToString()

    def whole(self) -> bytes:
        """All of it."""
        self.left = ONCE_TOKENS
        return self.first() + b"".join(self.token(stamp()) for _ in range(ONCE_TOKENS))


class Steps:
    """The engine's clock: whoever waits is woken when a step is over."""

    def __init__(self) -> None:
        self.number = 0
        self._waiters: list[asyncio.Future[None]] = []

    def next(self) -> asyncio.Future[None]:
        """Done at the next step's end."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return waiter

    async def run(self) -> None:
        """Make steps, on time: what is late is not made up for by being early."""
        loop = asyncio.get_running_loop()
        for due_s in _every(loop.time(), STEP_MS / 1e3):
            await asyncio.sleep(due_s - loop.time())
            self.number += 1
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)


def _every(start_s: float, step_s: float) -> Iterator[float]:
    return (start_s + i * step_s for i in itertools.count(1))


class Mock:
    """The services."""

    def __init__(self, steps: Steps, name: str = ME) -> None:
        self._steps = steps
        self._name = name

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """For `server.add_generic_rpc_handlers`."""
        generate: dict[str, wire.Handler] = {
            "Generate": grpc.unary_unary_rpc_method_handler(self._generate),
            "GenerateStream": grpc.unary_stream_rpc_method_handler(self._generate_stream),
        }
        attach: dict[str, wire.Handler] = {"Attach": grpc.stream_stream_rpc_method_handler(self._attach)}
        return (
            wire.service("stoker.v1.InferenceService", generate),
            wire.service("stoker.v1.WorkerLinkService", attach),
        )

    async def _generate(self, data: bytes, context: wire.Context) -> bytes:
        answer = Answer(inference_pb2.GenerateRequest.FromString(data).generation, self._name)
        whole = inference_pb2.GenerateStreamResponse.FromString(answer.whole())
        output = inference_pb2.Output(text="".join(delta.text for delta in whole.deltas))
        for delta in whole.deltas:
            output.token_ids.extend(delta.token_ids)
        return inference_pb2.GenerateResponse(
            started=whole.started, outputs=[output], finished=whole.finished
        ).SerializeToString()

    async def _generate_stream(self, data: bytes, context: wire.Context) -> None:
        answer = Answer(inference_pb2.GenerateStreamRequest.FromString(data).generation, self._name)
        if answer.how not in (PACED, UNPACED):
            await context.write(answer.whole())
            return
        await context.write(answer.first())
        while answer.left > 0:
            if answer.how == PACED:
                await self._steps.next()
            await context.write(answer.token(stamp()))

    async def _attach(self, _: object, context: wire.Context) -> None:
        _, version = hear_hello(await context.read(), SPOKEN, "mock")
        welcome = worker_link_pb2.Welcome(link_version=version)
        await context.write(worker_link_pb2.AttachResponse(welcome=welcome).SerializeToString())
        link = Link(self._steps, context, self._name, columns=version >= COLUMNS)
        async with asyncio.TaskGroup() as tasks:
            writers = [tasks.create_task(link.paced()), tasks.create_task(link.unpaced())]
            await link.read()
            for writer in writers:
                writer.cancel()


class Link:
    """One attached router."""

    def __init__(self, steps: Steps, context: wire.Context, name: str, *, columns: bool) -> None:
        self._columns = columns
        self._steps = steps
        self._context = context
        self._name = name
        self._paced: dict[int, Answer] = {}
        self._unpaced: dict[int, Answer] = {}
        # Told at once: how a stream began, or all of it.
        self._told: list[worker_link_pb2.StreamOutput] = []
        self._more = asyncio.Event()
        # One writer: the two loops below take turns.
        self._writing = asyncio.Lock()

    async def read(self) -> None:
        """Until the router is gone."""
        while isinstance(data := await self._context.read(), bytes):
            for request in heard(data):
                if request.HasField("start"):
                    self._start(request.start)
                elif request.HasField("cancel"):
                    self._paced.pop(request.cancel.stream_id, None)
                    self._unpaced.pop(request.cancel.stream_id, None)

    def _start(self, start: worker_link_pb2.StartStream) -> None:
        answer = Answer(generation_pb2.Generation.FromString(start.generation), self._name)
        output = worker_link_pb2.StreamOutput(stream_id=start.stream_id)
        if answer.how == PACED:
            self._paced[start.stream_id] = answer
            output.chunk = answer.first()
        elif answer.how == UNPACED:
            self._unpaced[start.stream_id] = answer
            output.chunk = answer.first()
        else:
            output.chunk, output.tokens, output.last = answer.whole(), ONCE_TOKENS, True
        self._told.append(output)
        self._more.set()

    async def paced(self) -> None:
        """A token of each paced stream a step; a sign of life where there is none."""
        loop = asyncio.get_running_loop()
        said_s = loop.time()
        while True:
            await self._steps.next()
            if self._paced:
                await self._say(self._made(self._paced))
                said_s = loop.time()
            elif loop.time() - said_s > HEARTBEAT_S:
                said_s = loop.time()
                beat = worker_link_pb2.Heartbeat(step=self._steps.number, load=load_to_proto(LOAD))
                await self._write(worker_link_pb2.AttachResponse(heartbeat=beat))

    async def unpaced(self) -> None:
        """What begins, and the streams that want all as fast as it goes."""
        while True:
            if not self._told and not self._unpaced:
                self._more.clear()
                await self._more.wait()
            told, self._told = self._told, []
            if told:
                await self._say(worker_link_pb2.Step(step=self._steps.number, outputs=told))
            if self._unpaced:
                await self._say(self._made(self._unpaced))
            await asyncio.sleep(0)  # requests and cancels come in, however fast this goes

    def _made(self, answers: dict[int, Answer]) -> worker_link_pb2.Step:
        """A token of each, as a server of the link's version tells them."""
        step = worker_link_pb2.Step(step=self._steps.number)
        stream_ids, chunks = list[int](), list[bytes]()
        now = stamp()
        for stream_id, answer in answers.items():
            chunk, last = answer.token(now), answer.left <= 0
            if last or not self._columns:
                step.outputs.add(stream_id=stream_id, chunk=chunk, last=last, tokens=1)
            else:
                stream_ids.append(stream_id)
                chunks.append(chunk)
        if chunks:
            parts = worker_link_pb2.StepParts(stream_ids=stream_ids, chunks=chunks, tokens=[1] * len(chunks))
            step.parts.CopyFrom(parts)
        for output in step.outputs:
            if output.last:
                del answers[output.stream_id]
        return step

    async def _say(self, step: worker_link_pb2.Step) -> None:
        await self._write(worker_link_pb2.AttachResponse(step=step))

    async def _write(self, response: worker_link_pb2.AttachResponse) -> None:
        async with self._writing:
            await self._context.write(response.SerializeToString())


async def serve(port: int, consul_address: str, name: str, http2: Http2) -> None:
    """Until killed."""
    steps = Steps()
    server = servers.server(http2)
    server.add_generic_rpc_handlers(Mock(steps, name).handlers())
    address = f"127.0.0.1:{port}"
    server.add_insecure_port(address)
    await server.start()
    async with asyncio.TaskGroup() as tasks, ConsulClient(consul_address) as consul:
        tasks.create_task(steps.run())
        registrar = ConsulRegistrar(consul, rng=random.Random())
        registrar.announce(
            Endpoint(
                server=name,
                address=address,
                zone="zone-a",
                epoch=name,
                engine="mock",
                models=(ModelState(MODEL, Residency.HOT, 1 << 20),),
                max_streams=4096,
                link_version=SPOKEN.highest,
                load=LOAD,
            )
        )
        registrar.set_health(passing=True, note="")
        await registrar.run()


def main() -> None:
    """Parse and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--consul", required=True)
    parser.add_argument("--name", default=ME, help="in the catalog")
    parser.add_argument("--http2", choices=("grpc", "stoker"), default="grpc")
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, arguments.consul, arguments.name, arguments.http2))


if __name__ == "__main__":
    main()
