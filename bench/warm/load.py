"""Sessions held through one router for a while, and a row for each request."""

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from bench.warm.sessions import Conversation, Say, Shape, Words, script
from stoker.v1 import inference_pb2
from stoker_client import Client, StokerError

Row = dict[str, Any]
_WITHIN_S = 120.0


@dataclass(frozen=True)
class Offered:
    """What load there is. Closed: `sessions` at once, the next one begins when one ends. Open: `per_s` begin a second,
    however many there are. `think_s`: between an answer and the next turn."""

    model: str
    sessions: int
    per_s: float | None
    think_s: float
    chat: bool
    seed: int


class Load:
    """The load on one router, that of `policy`, in one round or phase `at`."""

    def __init__(self, client: Client, policy: str, at: str, shape: Shape, words: Words, offered: Offered) -> None:
        self.rows: list[Row] = []
        # Tokens that came, also of answers that had not ended.
        self.tokens = 0
        self._client, self._policy, self._at = client, policy, at
        self._shape, self._words, self._offered = shape, words, offered
        self._began_s = time.perf_counter()

    async def run(self, seconds: float) -> float:
        """Hold sessions for so long; what has not ended by then is cut off. How long it was."""
        self._began_s = time.perf_counter()
        numbers = itertools.count()
        try:
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
                if self._offered.per_s is None:
                    for _ in range(self._offered.sessions):
                        tasks.create_task(self._one_after_the_other(numbers))
                else:
                    arrivals = random.Random(f"{self._offered.seed} {self._at}")
                    while True:
                        await asyncio.sleep(arrivals.expovariate(self._offered.per_s))
                        tasks.create_task(self._session(next(numbers)))
        except TimeoutError:
            pass  # it is over
        return time.perf_counter() - self._began_s

    async def _one_after_the_other(self, numbers: Iterator[int]) -> None:
        while True:
            await self._session(next(numbers))

    async def _session(self, number: int) -> None:
        offered = self._offered
        conversation = Conversation(self._words, chat=offered.chat)
        turns = script(self._shape, self._words.ids, offered.seed, self._at, number, self._policy)
        for place, say in enumerate(turns):
            if place and offered.think_s:
                await asyncio.sleep(offered.think_s)
            conversation.say(say.ids)
            if not await self._turn(f"{self._at}-{number}", place, conversation, say):
                # It does not go on: what would the next turn build on?
                await asyncio.sleep(0.1)
                return

    async def _turn(self, session: str, place: int, conversation: Conversation, say: Say) -> bool:
        began_s = time.perf_counter()
        row: Row = {
            "policy": self._policy,
            "at": self._at,
            "session": session,
            "turn": place,
            "began_s": round(began_s - self._began_s, 4),
            "outcome": "cut",
        }
        ids: list[int] = []
        texts: list[str] = []
        first_s = last_s = 0.0
        stream = self._client.stream(
            model=self._offered.model,
            messages=conversation.messages,
            token_ids=conversation.token_ids,
            session=f"{self._policy} {session}",
            temperature=0.0,
            max_tokens=say.answer_tokens,
            ignore_eos=True,
            timeout_s=_WITHIN_S,
        )
        try:
            async with aclosing(stream) as chunks:
                async for chunk in chunks:
                    if chunk.token_ids:
                        last_s = time.perf_counter()
                        first_s = first_s or last_s
                        self.tokens += len(chunk.token_ids)
                        ids += chunk.token_ids
                    texts.append(chunk.text)
                    if chunk.finished is not None:
                        row |= told(chunk.finished)
            row["outcome"] = "ok"
        except StokerError as error:
            row["outcome"], row["error"] = "failed", f"{error.code.name}: {error.message}"
            return False
        finally:
            row["tokens"] = len(ids)
            if first_s:
                row["ttft_ms"] = round(1e3 * (first_s - began_s), 2)
                if len(ids) > 1:
                    row["itl_ms"] = round(1e3 * (last_s - first_s) / (len(ids) - 1), 3)
            self.rows.append(row)
        conversation.heard(ids, "".join(texts))
        return True


def told(finished: inference_pb2.Finished) -> Row:
    """What the last part says: usage, the servers, what was predicted and what came of it, term by term."""
    usage, last = finished.usage, finished.attempts[-1]
    row: Row = {
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "servers": [each.server for each in finished.attempts],
        "pick": last.pick.reason,
        "expected_cached_tokens": last.pick.cached_tokens,
    }
    if last.HasField("first_token") and len(finished.attempts) == 1:
        expected, timings = last.pick.first_token, finished.timings
        actual_ms = last.first_token.ToNanoseconds() / 1e6
        load, queue, prefill = (each.ToNanoseconds() / 1e6 for each in (timings.load, timings.queue, timings.prefill))
        row["predicted_ms"], row["actual_ms"] = round(last.pick.first_token_ms, 2), round(actual_ms, 2)
        row["terms"] = {
            "ready": [round(expected.ready_ms, 2), round(load, 2)],
            "queue": [round(expected.queue_ms, 2), round(queue, 2)],
            "prefill": [round(expected.prefill_ms, 2), round(prefill, 2)],
            "rest": [round(expected.rest_ms, 2), round(actual_ms - load - queue - prefill, 2)],
        }
    return row
