from dataclasses import replace

from discovery.catalog import CatalogState
from discovery.endpoint import Load
from router.bids import ASKED_AGAIN_MS, MOST_LOST, bid
from router.ledger import UNTOLD, Account, Ledger, Typical
from router.policy import Candidate, Chosen
from router.scorers import Cost
from router.snapshot import Holder, Member
from stoker.v1 import worker_link_pb2
from tests.fakes.clock import FakeClock
from tests.unit.router.builders import HOT, endpoint, key, request

A1 = endpoint("a-1")
TOTAL_MS = 100.0
# 100 ms there, and 250 at the next best.
CHOSEN = Chosen(
    Candidate(Holder(Member(key(A1), A1, CatalogState.PASSING), HOT), Cost(0, 0, 0, 0, 0, TOTAL_MS, 0)), "", 2, 250.0
)
# 1,000 tokens a second; 400 waited, and of ours 70 came since.
THERE = Account(new_whole_tokens=70, load=Load(waiting_prompt_tokens=400, prefill_tokens_per_second=1000))


def most(chosen: Chosen = CHOSEN, account: Account = THERE, typical: Typical = UNTOLD, lost: int = 0) -> int | None:
    made = bid(request(), chosen, account, typical, lost)
    return made.most_waiting_prompt_tokens if made.HasField("most_waiting_prompt_tokens") else None


def test_no_more_may_wait_than_makes_the_next_best_as_good() -> None:
    assert most() == 400 + 70 + 150


def test_what_asking_again_takes_may_wait_in_any_case() -> None:
    slack = round(ASKED_AGAIN_MS)
    assert most(replace(CHOSEN, next_ms=TOTAL_MS)) == 470 + slack
    assert most(replace(CHOSEN, next_ms=TOTAL_MS - 50)) == 470 + slack  # a session's own among near ties


def test_nothing_is_asked_where_there_is_no_other_server_or_nothing_known() -> None:
    assert most(replace(CHOSEN, next_ms=None)) is None
    assert most(account=replace(THERE, load=Load())) is None
    assert most(account=replace(THERE, load=Load()), typical=Typical(prefill_tokens_per_second=2000)) == 70 + 300


def test_who_was_outbid_often_takes_what_there_is() -> None:
    assert most(lost=MOST_LOST - 1) is not None
    assert most(lost=MOST_LOST) is None


def test_where_servers_tell_cached_tokens_apart_it_bids_on_what_is_computed() -> None:
    load = Load(waiting_prompt_tokens=400, waiting_cached_prompt_tokens=100, prefill_tokens_per_second=1000)
    made = bid(request(), CHOSEN, Account(new_prompt_tokens=20, new_whole_tokens=70, load=load), UNTOLD, 0)
    assert made.most_computed_prompt_tokens == 300 + 20 + 150
    assert not made.HasField("most_waiting_prompt_tokens")
    # Expected of a server that has been told of more than it has heard of itself.
    early = replace(load, waiting_cached_prompt_tokens=1000)
    assert bid(request(), CHOSEN, Account(load=early), UNTOLD, 0).most_computed_prompt_tokens == 0


def test_what_is_expected_in_the_cache_is_told() -> None:
    cost = CHOSEN.candidate.cost._replace(cached_tokens=60)
    chosen = replace(CHOSEN, candidate=CHOSEN.candidate._replace(cost=cost))
    assert bid(request(100), chosen, Account(), UNTOLD, 0) == worker_link_pb2.Bid(
        prompt_tokens=100, cached_prompt_tokens=60
    )
    told = Account(load=Load(attention_tokens=50))  # 100 take as long as 200 first ones, of which the last 40 take 104
    made = bid(request(100), chosen, told, UNTOLD, 0)
    assert (made.prompt_tokens, made.cached_prompt_tokens) == (200, 96)


def test_the_prompt_is_told_in_any_case_as_servers_count_it() -> None:
    told = Account(load=Load(attention_tokens=50))
    assert bid(request(100), CHOSEN, told, UNTOLD, 0) == worker_link_pb2.Bid(prompt_tokens=200)


def test_what_was_sent_since_the_report_counts_whole() -> None:
    ledger = Ledger(FakeClock())
    ledger.book(key(A1), 30, cached_tokens=70)
    account = ledger.accounts[key(A1)]
    assert account.new_whole_tokens == 100
    ledger.report(key(A1), Load())
    assert account.new_whole_tokens == 0
