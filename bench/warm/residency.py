"""How long a server's two models take to load, to sleep and to wake, moved through the router; and what requests feel.

Where the engine cannot sleep (on a CPU), `sleep` stops the model and what follows starts it again from the disk.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing

from bench.warm.load import Row
from stoker.v1 import endpoint_pb2
from stoker_client import Client, StokerError

_WITHIN_S = 300.0
_PROMPT = "The capital of France is"


class Moves:
    """The moves of one server's two models."""

    def __init__(self, client: Client, first: str, second: str, patience_s: float) -> None:
        self._client, self._first, self._second, self._patience_s = client, first, second, patience_s
        self._sleeps = False
        # When to ask again, as the last step was told.
        self._again_s: float | None = None

    async def run(self, cycles: int) -> AsyncIterator[Row]:
        """All steps, told as they are done. At first the first model is hot and the second one was never loaded."""
        hot, other = self._first, self._second
        yield await self._step("first token, hot", hot, self._asks(hot))
        yield await self._step("first token, never loaded, the other one hot", other, self._asks(other))
        self._sleeps = await self._is(hot) == endpoint_pb2.RESIDENCY_ASLEEP
        away, put, back = ("asleep", "sleep", "wake") if self._sleeps else ("stopped", "stop", "start again")
        for _ in range(cycles):
            hot, other = other, hot
            yield await self._step(put, hot, self._sleep(hot))
            yield await self._step(back, hot, self._ready(hot))
            yield await self._step("first token, hot", hot, self._asks(hot))
            yield await self._step(put, hot, self._sleep(hot))
            yield await self._step(f"first token, {away}, nothing hot", hot, self._asks(hot))
            swapped = await self._swap(f"first token, {away}, the other one hot", other)
            yield swapped
            if "error" in swapped:  # it kept its place for longer than we wait
                hot, other = other, hot
        hot, other = other, hot
        yield await self._step("unload", hot, self._unload(hot))
        yield await self._step("load from the disk", hot, self._ready(hot))

    async def _step(self, what: str, model: str, work: Callable[[], Awaitable[None]]) -> Row:
        step: Row = {"step": what, "model": model}
        self._again_s = None
        began_s = time.perf_counter()
        try:
            await work()
        except StokerError as error:
            step["error"], self._again_s = f"{error.code.name}: {error.message}", error.retry_after_s
        step["seconds"] = round(time.perf_counter() - began_s, 4)
        return step

    async def _swap(self, what: str, model: str) -> Row:
        """Ask for one while the other is hot, which yields only after a while: ask again when told to."""
        began_s = time.perf_counter()
        while True:
            asked_s = time.perf_counter()
            step = await self._step(what, model, self._asks(model))
            again_s = self._again_s
            if again_s is None or asked_s - began_s + again_s > self._patience_s:
                return step | {"refused_s": round(asked_s - began_s, 3)}
            await asyncio.sleep(again_s)

    def _asks(self, model: str) -> Callable[[], Awaitable[None]]:
        async def first_token() -> None:
            stream = self._client.stream(_PROMPT, model=model, max_tokens=1, timeout_s=_WITHIN_S)
            async with aclosing(stream) as chunks:
                async for chunk in chunks:
                    if chunk.token_ids:
                        return

        return first_token

    def _ready(self, model: str) -> Callable[[], Awaitable[None]]:
        async def ready() -> None:
            make = self._client.wake_model if await self._is(model) == endpoint_pb2.RESIDENCY_ASLEEP else None
            async with aclosing((make or self._client.load_model)(model, timeout_s=_WITHIN_S)) as news:
                async for _ in news:
                    pass

        return ready

    def _sleep(self, model: str) -> Callable[[], Awaitable[None]]:
        async def sleep() -> None:
            await self._client.sleep_model(model)

        return sleep

    def _unload(self, model: str) -> Callable[[], Awaitable[None]]:
        async def unload() -> None:
            await self._client.unload_model(model)

        return unload

    async def _is(self, model: str) -> "endpoint_pb2.Residency.ValueType":
        (there,) = await self._client.models(model=model)
        return there.model.residency


def told(steps: Sequence[Row]) -> str:
    """Whether models slept or were stopped."""
    if any(step["step"] == "wake" for step in steps):
        return "The engine sleeps: level 1, its weights wait in the host's memory."
    return "The engine cannot sleep (no GPU, or no sleep mode): a model that is put away is stopped, and starts again."
