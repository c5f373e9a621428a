"""A generation taken from router to router until it is whole: the caller sees one answer."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from stoker.v1 import generation_pb2, inference_pb2
from stoker_client.call import Deadline, Metadata
from stoker_client.errors import StokerError
from stoker_client.story import Part, Story
from stoker_common.backoff import Backoff
from stoker_common.refusal import Code


class Router(Protocol):
    """A router that is connected."""

    @property
    def address(self) -> str:
        """Where it is."""

    @property
    def who(self) -> str:
        """Who broke, if a call breaks: `router host:port`."""

    @property
    def server(self) -> inference_pb2.Started | None:
        """The server that it sent the last call to, where that is known before the answer begins."""

    def stream(
        self, generation: generation_pb2.Generation, metadata: Metadata, timeout_s: float | None
    ) -> AsyncGenerator[Part, None]:
        """The parts of its answer. Raises StokerError; closing it cancels the call."""


class Routers(Protocol):
    """The routers that a client may ask."""

    def connected(self, within_s: float | None, avoid: str = "") -> AsyncGenerator[Router, None]:
        """Those that connect, first choice first, `avoid` last. Raises StokerError UNREACHABLE when none does."""

    def lost(self, address: str) -> None:
        """A call to this one broke."""


# A supervised router is back within seconds, and a router itself waits as long for a server.
HOLD_S = 10.0


@dataclass(frozen=True, slots=True)
class ResumeRules:
    """How an answer of which the caller has a part is gone on with."""

    # How long to look for a router since the last part came.
    hold_s: float = HOLD_S
    # Between two rounds through all addresses.
    pause_first_s: float = 0.05
    pause_most_s: float = 1.0


async def relayed(
    routers: Routers,
    generation: generation_pb2.Generation,
    metadata: Metadata,
    deadline: Deadline,
    *,
    rules: ResumeRules,
    rng: random.Random,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncGenerator[Part, None]:
    """The parts of one whole answer. Raises StokerError: before the first part when no router can begin, after it when
    none could go on within the deadline and `hold_s`, or the request wants or allows no more."""
    story = Story(generation, clock)
    backoff = Backoff(rng, rules.pause_first_s, rules.pause_most_s)
    broke_s = clock()
    failure: StokerError | None = None
    avoid = ""
    while True:
        gained = False
        try:
            async with aclosing(routers.connected(deadline.left_s(), avoid)) as reached:
                async for router in reached:
                    try:
                        asked = story.request()
                        async with aclosing(router.stream(asked, metadata, deadline.left_s())) as parts:
                            async for part in parts:
                                told = story.add(part)
                                if told is not None:
                                    yield told
                        if story.finished or not story.begun:
                            return
                        raise StokerError(Code.UNAVAILABLE, "the stream ended without its last part")
                    except StokerError as error:
                        failure = error
                        story.broke(error, router.who, router.server)
                        routers.lost(router.address)
                    gained = story.gained
                    if gained:
                        # It is a new break, with all other routers to choose from.
                        broke_s, avoid = clock(), router.address
                        backoff.reset()
                        break
        except StokerError as error:
            if error.reason != "UNREACHABLE" or not story.begun:
                raise
            failure = failure or error
        if failure is None or not story.begun:
            raise failure or StokerError(Code.UNAVAILABLE, "no router is known", reason="UNREACHABLE")
        if not gained:
            await _wait_for_a_router(failure, broke_s + rules.hold_s - clock(), backoff.delay_s(), deadline, sleep)


async def _wait_for_a_router(
    failure: StokerError,
    hold_s: float,
    pause_s: float,
    deadline: Deadline,
    sleep: Callable[[float], Awaitable[None]],
) -> None:
    """Before the next round through the addresses. Raises StokerError when there is to be none."""
    left_s = deadline.left_s()
    if left_s is not None and left_s <= pause_s:
        text = f"the deadline passed while looking for a router to go on with: {failure.message}"
        raise StokerError(Code.DEADLINE_EXCEEDED, text) from failure
    if hold_s <= 0:
        raise failure
    await sleep(pause_s)
