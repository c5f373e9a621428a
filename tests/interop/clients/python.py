"""grpc's C core against a router, by its synchronous or its asyncio client: `python -m tests.interop.clients.python
ADDRESS sync|aio`. One JSON line a case; a line on stdin lets it go on."""

import asyncio
import itertools
import json
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, cast

import grpc
import grpc.aio

from stoker.v1 import generation_pb2, inference_pb2, inference_pb2_grpc

_LARGE: Any = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    # A connection a channel, which ends with it.
    ("grpc.use_local_subchannel_pool", 1),
]
_MANY = 200


def asked(text: str, tokens: int, model: str = "sim-model") -> generation_pb2.Generation:
    """A generation of so many tokens."""
    sampling = generation_pb2.Sampling(max_tokens=tokens, ignore_eos=True)
    return generation_pb2.Generation(model=model, text=text, sampling=sampling)


@dataclass(slots=True)
class Seen:
    """What came of a stream."""

    text: str = ""
    tokens: int = 0
    messages: int = 0
    finished: bool = False

    def add(self, part: inference_pb2.GenerateStreamResponse) -> None:
        """One message of it."""
        self.messages += 1
        self.text += "".join(delta.text for delta in part.deltas)
        self.tokens += sum(len(delta.token_ids) for delta in part.deltas)
        self.finished = self.finished or part.HasField("finished")


class Caller(Protocol):
    """One of the two clients, as the cases use it."""

    async def unary(self, generation: generation_pb2.Generation, **call: Any) -> inference_pb2.GenerateResponse:
        """An answer at once. Raises grpc.RpcError."""

    async def whole(
        self, generation: generation_pb2.Generation, each: Callable[[Seen, Any], None] = ..., **call: Any
    ) -> Seen:
        """All of a stream; `each` is told of what there is so far, and the call. Raises grpc.RpcError."""

    async def close(self) -> None:
        """Close the channel."""


def _nothing(_: Seen, __: Any) -> None:
    pass


class Aio:
    """grpc.aio."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_LARGE)
        self._stub: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)

    def begin(self, generation: generation_pb2.Generation, **call: Any) -> Any:
        """A stream's call, to be read or not."""
        return self._stub.GenerateStream(inference_pb2.GenerateStreamRequest(generation=generation), **call)

    async def unary(self, generation: generation_pb2.Generation, **call: Any) -> inference_pb2.GenerateResponse:
        """See `Caller`."""
        answer: inference_pb2.GenerateResponse = await self._stub.Generate(
            inference_pb2.GenerateRequest(generation=generation), **call
        )
        return answer

    async def whole(
        self, generation: generation_pb2.Generation, each: Callable[[Seen, Any], None] = _nothing, **call: Any
    ) -> Seen:
        """See `Caller`."""
        seen = Seen()
        made = self.begin(generation, **call)
        try:
            async for part in made:
                seen.add(part)
                each(seen, made)
        except asyncio.CancelledError:
            # What grpc.aio raises where the call itself was cancelled.
            if not made.cancelled():
                raise
            raise _Cancelled from None
        return seen

    async def close(self) -> None:
        """See `Caller`."""
        await self._channel.close()


class _Cancelled(grpc.RpcError):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.CANCELLED


class Sync:
    """grpc's synchronous client, a thread a call."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=_LARGE)
        # The generated stubs' types know grpc.aio's channels alone.
        self._stub: Any = inference_pb2_grpc.InferenceServiceStub(cast(grpc.aio.Channel, self._channel))
        self._threads = ThreadPoolExecutor(_MANY)

    async def unary(self, generation: generation_pb2.Generation, **call: Any) -> inference_pb2.GenerateResponse:
        """See `Caller`."""
        request = inference_pb2.GenerateRequest(generation=generation)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: self._stub.Generate(request, **call))

    async def whole(
        self, generation: generation_pb2.Generation, each: Callable[[Seen, Any], None] = _nothing, **call: Any
    ) -> Seen:
        """See `Caller`."""

        def read() -> Seen:
            seen = Seen()
            made = self._stub.GenerateStream(inference_pb2.GenerateStreamRequest(generation=generation), **call)
            for part in made:
                seen.add(part)
                each(seen, made)
            return seen

        return await asyncio.get_running_loop().run_in_executor(self._threads, read)

    async def close(self) -> None:
        """See `Caller`."""
        self._channel.close()
        self._threads.shutdown()


def must(truth: bool, why: str) -> None:
    """Raises AssertionError, also where Python leaves assertions out."""
    if not truth:
        raise AssertionError(why)


async def refused(call: Awaitable[object], code: grpc.StatusCode) -> grpc.RpcError:
    """The call's error, which has to be of this code."""
    try:
        await call
    except grpc.RpcError as error:
        found: Any = error
        must(found.code() is code, f"{code}: {found}")
        return error
    raise AssertionError(f"it was served, not {code}")


class Cases:
    """What a client of each language does, by name, in this order."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def unary(self) -> None:
        """One answer."""
        answer = await self._caller.unary(asked("unary one", 16))
        must(len(answer.outputs[0].token_ids) == 16, "not 16 tokens")

    async def stream(self) -> None:
        """A stream says what a unary call says."""
        once = await self._caller.unary(asked("stream of four hundred", 400))
        seen = await self._caller.whole(asked("stream of four hundred", 400))
        must(seen.text == once.outputs[0].text and seen.tokens == 400, "not what a unary call gives")
        must(seen.messages > 50, f"{seen.messages} messages")

    async def parallel(self) -> None:
        """Many streams on one connection."""
        await self.many(_MANY, 50, "parallel", _nothing)

    async def cancel(self) -> None:
        """Given up in the middle."""

        def at_five(seen: Seen, call: Any) -> None:
            if seen.tokens >= 5:
                call.cancel()

        calls = (self._caller.whole(asked(f"cancel {i}", 100_000), at_five) for i in range(20))
        await asyncio.gather(*(refused(call, grpc.StatusCode.CANCELLED) for call in calls))

    async def deadline(self) -> None:
        """A deadline passes in the middle."""
        call = self._caller.whole(asked("deadline", 100_000), timeout=0.3)
        await refused(call, grpc.StatusCode.DEADLINE_EXCEEDED)

    async def large(self) -> None:
        """Megabytes both ways."""
        answer = await self._caller.unary(asked(f"lorem{' ' * (4 << 20)}ipsum", 3))
        must(len(answer.started.prompt_token_ids) > 2e5, "not a large answer")

    async def too_large(self) -> None:
        """Refused, and the connection goes on."""
        too_large = self._caller.unary(asked("lorem ipsum " * ((17 << 20) // 12), 3))
        await refused(too_large, grpc.StatusCode.RESOURCE_EXHAUSTED)
        await self.unary()

    async def metadata(self) -> None:
        """Much metadata; too much is refused, and the connection goes on."""
        some = (("x-large", "v" * 4000), ("x-large-bin", bytes(2000)))
        await self._caller.unary(asked("metadata", 4), metadata=some)
        more = self._caller.unary(asked("metadata", 4), metadata=(("x-larger", "v" * 20_000),))
        await refused(more, grpc.StatusCode.RESOURCE_EXHAUSTED)
        await self.unary()

    async def gzip(self) -> None:
        """A compressed request."""
        answer = await self._caller.unary(asked("lorem ipsum " * 50_000, 4), compression=grpc.Compression.Gzip)
        must(len(answer.started.prompt_token_ids) > 1e5, "not the whole prompt")

    async def error(self) -> None:
        """A status with details."""
        call = self._caller.unary(asked("error", 4, "no-such-model"))
        error: Any = await refused(call, grpc.StatusCode.NOT_FOUND)
        must("grpc-status-details-bin" in dict(error.trailing_metadata()), "no details")

    async def many(self, count: int, tokens: int, name: str, each: Callable[[Seen, Any], None]) -> None:
        """So many streams at once, each to be whole."""
        made = await asyncio.gather(*(self._caller.whole(asked(f"{name} {i}", tokens), each) for i in range(count)))
        must(all(seen.tokens == tokens and seen.finished for seen in made), "a stream is not whole")


async def run(address: str, kind: str) -> None:
    """All cases, one after the other."""
    caller: Caller = Sync(address) if kind == "sync" else Aio(address)
    cases = Cases(caller)
    for name in (
        "unary",
        "stream",
        "parallel",
        "cancel",
        "deadline",
        "large",
        "too_large",
        "metadata",
        "gzip",
        "error",
    ):
        await _told(name, getattr(cases, name)())

    # The server is told to leave while streams run, and comes back.
    begun, lock = itertools.count(1), threading.Lock()

    def first(seen: Seen, _: Any) -> None:
        if seen.messages == 1:
            with lock:
                if next(begun) == 20:
                    _say({"case": "streams run"})

    await _told("drain", cases.many(20, 400, "drain", first))
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await _told("restart", _restarted(caller, cases))
    await caller.close()


async def _restarted(caller: Caller, cases: Cases) -> None:
    await caller.unary(asked("restart", 4), timeout=10, wait_for_ready=True)
    await cases.parallel()


async def _told(name: str, case: Awaitable[None]) -> None:
    why = ""
    try:
        await case
    except (AssertionError, grpc.RpcError) as error:
        why = f"{type(error).__name__}: {error}"
    _say({"case": name, "why": why})


def _say(line: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:3]))
