import random
import time
from collections import Counter
from dataclasses import replace

import pytest

from discovery.catalog import CatalogState
from discovery.endpoint import Endpoint, ModelState, Residency
from router.ejection import Breakers, EjectionRules
from router.ledger import Account, Key, Ledger
from router.policy import Chosen, Conditions, Policy
from router.room import RoomRules, Rooms
from router.scorers import Rates
from router.snapshot import Snapshot
from stoker_common.refusal import exhausted
from tests.fakes.clock import FakeClock
from tests.unit.router.builders import MODEL, endpoint, key, request, snapshot

A1, A2, B1 = endpoint("a-1"), endpoint("a-2"), endpoint("b-1", "b")
POLICY = Policy("a", Rates(prefill_tokens_per_second=1000, itl_ms=10, leave_zone_ms=50))


class Setting:
    """A moment to pick in."""

    def __init__(self, *endpoints: Endpoint, states: dict[str, CatalogState] | None = None) -> None:
        self.snapshot: Snapshot = snapshot(*endpoints, states=states)
        self.clock = FakeClock()
        self.breakers = Breakers(EjectionRules(), self.clock, random.Random(1))
        self.accounts: dict[Key, Account] = {}
        self.held: dict[Key, int] = {}
        self.session: dict[Key, int] = {}
        self.ways_ms: dict[str, float] = {}
        self.rng = random.Random(1)

    def pick(
        self,
        *tried: Endpoint,
        prompt_tokens: int = 100,
        output_tokens: int = 100,
        session: int = 0,
        hard: bool = False,
        rooms: Rooms | None = None,
    ) -> Chosen | None:
        conditions = Conditions(
            self.accounts, self.breakers, self.held, self.ways_ms, self.clock(), rooms, self.session
        )
        asked = replace(request(prompt_tokens, output_tokens, session), hard=hard)
        return POLICY.choose(asked, self.snapshot, {key(each) for each in tried}, conditions, self.rng)

    def server(self, *tried: Endpoint, prompt_tokens: int = 100) -> tuple[str, str]:
        """The server that is picked, and why."""
        chosen = self.pick(*tried, prompt_tokens=prompt_tokens)
        assert chosen is not None
        return chosen.candidate.holder.member.endpoint.server, chosen.reason


def test_nobody_holds_the_model() -> None:
    assert Setting(endpoint(models=())).pick() is None


def test_home_before_another_zone() -> None:
    assert Setting(A1, B1).server() == ("a-1", "nearest zone")


def test_another_zone_when_home_is_crowded() -> None:
    setting = Setting(A1, B1)
    setting.accounts[key(A1)] = Account(own_prompt_tokens=500)
    assert setting.server() == ("b-1", "shortest queue")


def test_the_measured_way_counts_beside_the_cost_of_leaving() -> None:
    setting = Setting(A1, B1)
    setting.accounts[key(A1)] = Account(own_prompt_tokens=100)
    assert setting.server()[0] == "b-1"
    setting.ways_ms["b"] = 80.0
    assert setting.server()[0] == "a-1"


def test_the_shortest_queue() -> None:
    setting = Setting(A1, A2)
    setting.accounts[key(A1)] = Account(own_prompt_tokens=500)
    assert setting.server() == ("a-2", "shortest queue")


def test_a_session_goes_where_its_cache_is_until_the_wait_there_costs_more_than_it_saves() -> None:
    setting = Setting(A1, A2)
    setting.held[key(A2)] = setting.session[key(A2)] = 900
    assert setting.server(prompt_tokens=1000) == ("a-2", "session's cache")
    setting.accounts[key(A2)] = Account(own_prompt_tokens=1000)
    assert setting.server(prompt_tokens=1000) == ("a-1", "shortest queue")


def test_a_prefix_counts_as_a_session_does() -> None:
    setting = Setting(A1, A2)
    setting.held[key(A2)] = 900
    assert setting.server(prompt_tokens=1000) == ("a-2", "cached prefix")


def homes(setting: Setting) -> dict[int, str]:
    """Where sessions that have no cache anywhere go."""
    found = {}
    for session in range(1, 400):
        chosen = setting.pick(session=session * 0x9E3779B97F4A7C15 % 2**64)
        assert chosen is not None
        found[session] = chosen.candidate.holder.member.endpoint.server
    return found


@pytest.mark.parametrize("servers", [4, 40])
def test_a_sessions_first_home_is_the_same_for_every_router_and_all_get_their_share(servers: int) -> None:
    endpoints = [endpoint(f"a-{place}") for place in range(servers)]
    one, other = Setting(*endpoints), Setting(*reversed(endpoints))
    other.rng.seed(99)
    first, second = homes(one), homes(other)
    assert first == second
    shares = Counter(first.values())
    assert len(shares) == servers
    assert max(shares.values()) < 3 * len(first) / servers


def test_sessions_stay_put_when_servers_come_and_go_elsewhere() -> None:
    endpoints = [endpoint(f"a-{place}") for place in range(5)]
    before = homes(Setting(*endpoints))
    after = homes(Setting(*endpoints[1:]))
    assert {session for session in before if before[session] != after[session]} == {
        session for session in before if before[session] == "a-0"
    }
    # And those of the one that went are spread over the others.
    assert len({after[session] for session in before if before[session] == "a-0"}) == 4


def test_a_session_stays_where_it_is_among_near_ties() -> None:
    endpoints = [endpoint(f"a-{place}") for place in range(5)]
    setting = Setting(*endpoints)
    for at in endpoints:
        setting.session = {key(at): 1}
        assert set(homes(setting).values()) == {at.server}


def hard(setting: Setting, *tried: Endpoint, rooms: Rooms | None = None) -> tuple[str, str] | None:
    chosen = setting.pick(*tried, session=7, hard=True, rooms=rooms)
    return (chosen.candidate.holder.member.endpoint.server, chosen.reason) if chosen else None


def test_a_hard_session_waits_for_its_server() -> None:
    setting = Setting(A1, A2)
    setting.session = {key(A1): 1, key(A2): 900}
    setting.accounts[key(A2)] = Account(own_streams=8, own_prompt_tokens=50_000)
    assert hard(setting) == ("a-2", "session's server")
    # Full: nobody gets it, and it waits in the router.
    rooms = Rooms(RoomRules(waiting_per_server=0), Ledger(setting.clock), setting.clock)
    assert hard(setting, rooms=rooms) is None
    soft = setting.pick(session=7, rooms=rooms)
    assert soft is not None
    assert soft.candidate.holder.member.key == key(A1)


def test_a_full_server_gets_a_request_where_the_others_queues_are_longer() -> None:
    a3 = endpoint("a-3", max_streams=2)
    setting = Setting(A1, A2, a3)
    setting.accounts[key(A1)] = Account(own_prompt_tokens=60_000)
    setting.accounts[key(A2)] = Account(own_prompt_tokens=50_000)
    setting.accounts[key(a3)] = Account(own_streams=4)
    rooms = Rooms(RoomRules(waiting_per_server=0), Ledger(setting.clock), setting.clock)
    chosen = setting.pick(rooms=rooms)
    assert chosen is not None
    assert (chosen.candidate.holder.member.key, chosen.candidate.cost.full_ms > 0) == (key(a3), True)
    # What a server itself says of that goes before: there it would be refused.
    rooms.refused(key(a3), exhausted("many wait", reason="SERVER_OVERLOADED", retry_after_s=5.0))
    chosen = setting.pick(rooms=rooms)
    assert chosen is not None and chosen.candidate.holder.member.key == key(A2)


def test_where_only_a_server_has_room_whose_model_is_not_hot_full_ones_are_left_alone() -> None:
    cold = endpoint("a-3", models=(ModelState(MODEL, Residency.ASLEEP, 4096),))
    setting = Setting(A1, cold)
    setting.accounts[key(A1)] = Account(own_streams=8)
    rooms = Rooms(RoomRules(waiting_per_server=0), Ledger(setting.clock), setting.clock)
    chosen = setting.pick(rooms=rooms)
    assert chosen is not None and chosen.candidate.holder.member.key == key(cold)


def test_a_hard_session_without_a_server_yet_goes_where_it_is_cheapest() -> None:
    setting = Setting(A1, A2)
    setting.accounts[key(A2)] = Account(own_prompt_tokens=500)
    assert hard(setting) == ("a-1", "shortest queue")


def test_a_hard_session_moves_when_its_server_is_gone_leaving_failing_or_failed_it() -> None:
    setting = Setting(A1)
    setting.session = {key(A2): 900}
    assert hard(setting) == ("a-1", "only candidate")
    leaving = Setting(A1, A2, states={"a-2": CatalogState.LEAVING})
    leaving.session = {key(A2): 900}
    assert hard(leaving) == ("a-1", "only candidate")
    failing = Setting(A1, A2)
    failing.session = {key(A2): 900}
    assert hard(failing, A2) == ("a-1", "only candidate")
    failing.breakers.failed(key(A2), dead_link=True)
    assert hard(failing) == ("a-1", "only candidate")


def test_a_restarted_servers_cache_is_empty() -> None:
    setting = Setting(A1, A2)
    setting.held["a-2", "an-earlier-epoch"] = 900
    assert {setting.server(prompt_tokens=1000)[1] for _ in range(20)} == {"all alike"}


def test_near_ties_are_spread() -> None:
    setting = Setting(A1, A2, endpoint("a-3"))
    picked = Counter(setting.server()[0] for _ in range(300))
    assert set(picked) == {"a-1", "a-2", "a-3"}
    assert min(picked.values()) > 60


def test_tried_endpoints_are_never_picked_again() -> None:
    setting = Setting(A1, B1)
    assert setting.server(A1) == ("b-1", "only candidate")
    assert setting.pick(A1, B1) is None


def test_ejected_endpoints_are_left_out_until_nothing_else_is_left() -> None:
    setting = Setting(A1, A2)
    setting.breakers.failed(key(A1), dead_link=True)
    assert setting.server() == ("a-2", "only candidate")
    setting.breakers.failed(key(A2), dead_link=True)
    assert setting.server()[0] in ("a-1", "a-2")
    assert setting.server(A2)[0] == "a-1"


@pytest.mark.parametrize("state", [CatalogState.MAINTENANCE, CatalogState.LEAVING])
def test_what_an_operator_or_the_server_said_counts_at_once(state: CatalogState) -> None:
    assert Setting(A1, A2, states={"a-1": state}).server() == ("a-2", "only candidate")
    assert Setting(A1, states={"a-1": state}).pick() is None


@pytest.mark.parametrize("state", [CatalogState.CRITICAL, CatalogState.MISSING])
def test_what_the_catalog_lost_is_served_on_while_it_answers(state: CatalogState) -> None:
    assert Setting(A1, states={"a-1": state}).server()[0] == "a-1"


def test_a_burst_spreads_because_each_pick_is_booked() -> None:
    endpoints = [endpoint(f"a-{i}") for i in range(8)]
    setting = Setting(*endpoints)
    for each in endpoints:
        setting.accounts[key(each)] = Account()
    for _ in range(64):
        chosen = setting.pick()
        assert chosen is not None
        account = setting.accounts[chosen.candidate.holder.member.key]
        account.own_streams += 1
        account.own_prompt_tokens += 100
    assert {account.own_streams for account in setting.accounts.values()} == {8}


def pick_us(servers: int) -> float:
    """What a pick among so many takes: the best of many, since the machine is shared."""
    setting = Setting(*(endpoint(f"a-{i}") for i in range(servers)))
    for place, member in enumerate(setting.snapshot.members.values()):
        setting.accounts[member.key] = Account(own_prompt_tokens=place * 37 % 1000)

    def once_us() -> float:
        began = time.perf_counter()
        setting.pick()
        return (time.perf_counter() - began) * 1e6

    return min(once_us() for _ in range(300))


def test_a_pick_costs_the_same_in_any_fleet() -> None:
    # DESIGN.md's budget is 100 us at 64: measured 60. A busy machine doubles that, an unbounded pick does far worse.
    assert pick_us(64) < 200
    assert pick_us(512) < 3 * pick_us(64)


def test_in_a_large_fleet_the_sessions_server_is_always_looked_at() -> None:
    endpoints = [endpoint(f"a-{i}") for i in range(64)]
    setting = Setting(*endpoints)
    setting.held[key(endpoints[50])] = 900
    assert {setting.server(prompt_tokens=1000)[0] for _ in range(50)} == {"a-50"}


def test_in_a_large_fleet_the_last_server_that_can_is_found() -> None:
    endpoints = [endpoint(f"a-{i}") for i in range(64)]
    setting = Setting(*endpoints)
    assert setting.server(*endpoints[:-1])[0] == "a-63"


def test_a_router_without_servers_at_home_looks_at_as_many_elsewhere() -> None:
    setting = Setting(*(endpoint(f"b-{i}", "b") for i in range(64)))
    chosen = setting.pick()
    assert chosen is not None
    assert chosen.candidates == 16
