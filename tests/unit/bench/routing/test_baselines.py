import random
from collections import Counter

import pytest

from bench.routing.baseline import Rule, Seen
from bench.routing.baselines import CacheAware, Dynamo, LeastOutstanding, LlmD, RoundRobin, SessionRing
from bench.routing.job import Job
from discovery.endpoint import Load

SERVERS = ["a", "b", "c"]


class Cached:
    """So many tokens in each server's cache."""

    def __init__(self, tokens: dict[str, int]) -> None:
        self.tokens = tokens

    def cached(self, server: str, job: Job) -> int:
        return self.tokens.get(server, 0)


def job(chain: tuple[int, ...] = (), session: str = "", prompt: int = 0) -> Job:
    return Job(0, 0.0, prompt or max(1, len(chain) * 512), 100, chain, session)


def seen(streams: dict[str, int] | None = None, **counts: dict[str, int]) -> Seen:
    return Seen(
        random.Random(1),
        Counter(streams or {}),
        Counter(counts.get("prefill", {})),
        Counter(counts.get("held", {})),
    )


def test_round_robin() -> None:
    rule = RoundRobin()
    assert [rule.choose(job(), SERVERS, seen()) for _ in range(4)] == ["a", "b", "c", "a"]


def test_least_outstanding_and_any_of_those_alike() -> None:
    rule = LeastOutstanding()
    assert rule.choose(job(), SERVERS, seen({"a": 2, "b": 1, "c": 3})) == "b"
    state = seen({"a": 1})
    assert {rule.choose(job(), SERVERS, state) for _ in range(30)} == {"b", "c"}


def test_a_sessions_server_stays_when_others_go() -> None:
    rule = SessionRing()
    sessions = [f"s{i}" for i in range(200)]
    before = {each: rule.choose(job(session=each), SERVERS, seen()) for each in sessions}
    after = {each: rule.choose(job(session=each), ["a", "b"], seen()) for each in sessions}
    assert set(before.values()) == set(SERVERS)
    assert all(after[each] == server for each, server in before.items() if server != "c")


@pytest.mark.parametrize(
    ("streams", "prompt", "expected"),
    [
        ({"a": 5}, 1024, {"a"}),  # it holds all: its load does not matter
        ({"a": 5}, 4000, {"b", "c"}),  # a quarter only: a miss
        ({"a": 100}, 1024, {"b", "c"}),  # far above the mean
        ({"a": 100, "b": 90, "c": 90}, 1024, {"a"}),  # above it, not far
    ],
)
def test_cache_aware(streams: dict[str, int], prompt: int, expected: set[str]) -> None:
    for _ in range(10):
        rule = CacheAware()
        assert rule.choose(job((1, 2)), SERVERS, seen({"b": 1, "c": 1})) == "a"
        assert rule.choose(job((1, 2), prompt=prompt), SERVERS, seen(streams)) in expected


@pytest.mark.parametrize(
    ("prefill", "held", "cached", "expected"),
    [
        ({}, {}, {"b": 512}, "b"),
        ({"b": 600}, {"a": 1}, {"b": 512}, "c"),
        ({}, {"a": 700, "b": 100}, {"a": 512}, "c"),
    ],
)
def test_dynamo(prefill: dict[str, int], held: dict[str, int], cached: dict[str, int], expected: str) -> None:
    rule = Dynamo(Cached(cached))
    assert rule.choose(job((1, 2)), SERVERS, seen(prefill=prefill, held=held)) == expected


def test_llm_d_weighs_queue_cache_use_and_prefix() -> None:
    rule, state = LlmD(), seen()
    state.load = {"a": Load(), "b": Load(kv_usage=0.5), "c": Load(kv_usage=0.5)}
    assert rule.choose(job((1, 2)), SERVERS, state) == "a"
    # The whole prefix weighs 3, an empty cache 2.
    state.load = {"a": Load(kv_usage=1.0), "b": Load(), "c": Load(kv_usage=0.1)}
    assert rule.choose(job((1, 2)), SERVERS, state) == "a"
    # The longest queue weighs 2 more.
    state.load["a"] = Load(kv_usage=1.0, waiting=1)
    assert rule.choose(job((1, 2)), SERVERS, state) == "b"


def test_all_are_rules() -> None:
    rules: list[Rule] = [RoundRobin(), LeastOutstanding(), SessionRing(), CacheAware(), Dynamo(Cached({})), LlmD()]
    assert all(rule.choose(job(), ["a"], seen()) == "a" for rule in rules)
