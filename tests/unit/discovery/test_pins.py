"""Pins: what cannot be read changes nothing, and the last copy outlives the process."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from discovery.errors import CatalogError
from discovery.pins import PREFIX, ConsulPins, Keys
from stoker_common.backoff import Backoff
from tests.fakes.until import until

pytestmark = pytest.mark.unit


class Agent:
    """Answers with what is next, and then blocks as a query does that nothing wakes."""

    def __init__(self, *answers: Keys | CatalogError) -> None:
        self.answers = list(answers)
        self.asked: list[int] = []

    async def keys(self, prefix: str, zone: str, index: int, wait_s: float) -> Keys:
        assert (prefix, zone) == (PREFIX, "zone-a")
        self.asked.append(index)
        if not self.answers:
            await asyncio.Event().wait()
        answer = self.answers.pop(0)
        if isinstance(answer, CatalogError):
            raise answer
        return answer


def keys(index: int, *names: str, leader: bool = True) -> Keys:
    return Keys(index, [PREFIX + name for name in names], leader)


async def seen(agent: Agent, kept: Path | None = None) -> Sequence[frozenset[str]]:
    """What is published until the agent has nothing more to say."""
    published: list[frozenset[str]] = []
    pins = ConsulPins(agent, "zone-a", Backoff(random.Random(1), 0.001, 0.002), kept)
    running = asyncio.ensure_future(pins.run(published.append))
    expected = len(agent.answers) + 1
    await until(lambda: len(agent.asked) == expected)
    running.cancel()
    await asyncio.wait((running,))
    return published


async def test_pins_are_published_when_they_change_and_queries_go_on_from_the_last_index() -> None:
    agent = Agent(keys(5, "a", "org%2Fchat@1"), keys(6, "a", "org%2Fchat@1"), keys(7))
    assert await seen(agent) == [frozenset({"a", "org/chat@1"}), frozenset()]
    assert agent.asked == [0, 5, 6, 7]


async def test_the_folder_itself_is_no_pin() -> None:
    assert await seen(Agent(keys(1, "", "a"))) == [frozenset({"a"})]


async def test_what_cannot_be_read_changes_nothing() -> None:
    down = CatalogError("UNREACHABLE", "cannot be reached")
    agent = Agent(keys(5, "a"), down, keys(9, leader=False), keys(6, "a", "b"))
    assert await seen(agent) == [frozenset({"a"}), frozenset({"a", "b"})]
    assert agent.asked == [0, 5, 0, 0, 6]


async def test_the_last_copy_counts_at_a_start_without_consul(tmp_path: Path) -> None:
    kept = tmp_path / "pins.json"
    assert await seen(Agent(keys(1, "a")), kept) == [frozenset({"a"})]
    assert await seen(Agent(CatalogError("UNREACHABLE", "away")), kept) == [frozenset({"a"})]
    kept.write_text('{"not": "a list"}')
    assert await seen(Agent(keys(1, "b")), kept) == [frozenset({"b"})]
    kept.write_text("[")
    assert await seen(Agent(keys(1, "b")), kept) == [frozenset({"b"})]
