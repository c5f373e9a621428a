import pytest

from model_server.bids import Bids
from stoker.v1.worker_link_pb2 import Bid
from stoker_common.refusal import Code, Refusal

pytestmark = pytest.mark.unit


def test_a_request_is_taken_if_no_more_waits_than_its_router_believes() -> None:
    waiting = 500
    bids = Bids(lambda: waiting)
    with bids.take(Bid(prompt_tokens=100, most_waiting_prompt_tokens=500)):
        pass
    with pytest.raises(Refusal) as refused, bids.take(Bid(prompt_tokens=100, most_waiting_prompt_tokens=499)):
        pass
    assert (refused.value.code, refused.value.reason) == (Code.RESOURCE_EXHAUSTED, "OUTBID")
    assert bids.coming == 0


def test_who_asks_for_nothing_is_taken_whatever_waits() -> None:
    bids = Bids(lambda: 10**6)
    with bids.take(None), bids.take(Bid(prompt_tokens=7)):
        assert bids.coming == 7
    assert bids.coming == 0


def test_of_those_that_come_at_once_the_second_finds_the_first() -> None:
    """Before the engine has heard of it: a prompt's text is tokenised first."""
    bids = Bids(lambda: 0)
    with bids.take(Bid(prompt_tokens=300, most_waiting_prompt_tokens=0)) as first:
        with pytest.raises(Refusal, match="300 prompt tokens"), bids.take(Bid(most_waiting_prompt_tokens=299)):
            pass
        first.computed()
        with bids.take(Bid(prompt_tokens=1, most_waiting_prompt_tokens=0)):
            assert bids.coming == 1
    assert bids.coming == 0


def test_what_routers_expect_in_the_cache_does_not_wait_for_who_bids_on_what_is_computed() -> None:
    bids = Bids(lambda: 1000)
    with bids.take(Bid(prompt_tokens=900, cached_prompt_tokens=800)) as first:
        assert bids.cached == 800
        with bids.take(Bid(prompt_tokens=10, most_computed_prompt_tokens=200)):
            pass
        with pytest.raises(Refusal, match="200 prompt tokens are to be computed"):
            bids.admit(Bid(most_waiting_prompt_tokens=5000, most_computed_prompt_tokens=199))
        with pytest.raises(Refusal, match="1000 prompt tokens wait"):
            bids.admit(Bid(most_waiting_prompt_tokens=999))
        first.computed()
        assert bids.cached == 0
    assert bids.cached == 0


def test_a_prompt_that_failed_waits_no_more() -> None:
    bids = Bids(lambda: 0)
    with pytest.raises(ZeroDivisionError), bids.take(Bid(prompt_tokens=300)):
        raise ZeroDivisionError
    assert bids.coming == 0
