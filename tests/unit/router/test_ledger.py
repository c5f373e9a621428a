import pytest

from discovery.endpoint import Load
from router.ledger import Account, Ledger
from tests.fakes.clock import FakeClock

KEY = ("a-1", "e1")


def test_a_booking_counts_until_it_is_closed() -> None:
    ledger = Ledger(FakeClock())
    booking = ledger.book(KEY, 100)
    account = ledger.accounts[KEY]
    assert (ledger.in_flight, account.own_streams, account.own_prompt_tokens) == (1, 1, 100)
    booking.first_token()
    assert (account.own_streams, account.own_prompt_tokens) == (1, 0)
    booking.close()
    assert (ledger.in_flight, account.own_streams, account.own_prompt_tokens) == (0, 0, 0)


def test_closing_twice_releases_once_and_closing_early_releases_all() -> None:
    ledger = Ledger(FakeClock())
    first, second = ledger.book(KEY, 100), ledger.book(KEY, 50)
    first.close()
    first.close()
    first.first_token()
    account = ledger.accounts[KEY]
    assert (ledger.in_flight, account.own_streams, account.own_prompt_tokens) == (1, 1, 50)
    second.close()
    assert (account.own_streams, account.own_prompt_tokens) == (0, 0)


def test_a_report_tells_of_others_what_it_counts_beyond_our_own() -> None:
    ledger = Ledger(FakeClock())
    ledger.book(KEY, 100)
    ledger.report(KEY, Load(running=2, waiting=3, waiting_prompt_tokens=700))
    account = ledger.accounts[KEY]
    assert (account.others_streams, account.others_prompt_tokens) == (4, 600)
    assert account.streams == 5


def test_a_report_older_than_our_booking_never_counts_below_zero() -> None:
    ledger = Ledger(FakeClock())
    ledger.book(KEY, 100)
    ledger.report(KEY, Load())
    account = ledger.accounts[KEY]
    assert (account.streams, account.others_prompt_tokens) == (1, 0)


def test_an_endpoint_that_speaks_for_itself_is_believed_more_than_what_the_catalog_says_of_it() -> None:
    clock = FakeClock()
    ledger = Ledger(clock)
    ledger.published(KEY, Load(running=5))
    assert ledger.accounts[KEY].streams == 5
    ledger.report(KEY, Load())
    clock.advance(1.9)
    ledger.published(KEY, Load(running=5))
    assert ledger.accounts[KEY].streams == 0
    clock.advance(0.2)
    ledger.published(KEY, Load(running=5))
    assert ledger.accounts[KEY].streams == 5


def test_others_prompts_are_worked_on_after_the_report_and_ours_stay_until_their_first_token() -> None:
    clock = FakeClock()
    ledger = Ledger(clock)
    ledger.report(KEY, Load(waiting=1, waiting_prompt_tokens=1000))
    ledger.book(KEY, 100)
    account = ledger.accounts[KEY]
    assert account.waiting_prompt_tokens(clock(), 500) == 1100
    clock.advance(1)
    assert account.waiting_prompt_tokens(clock(), 500) == 600
    clock.advance(10)
    assert account.waiting_prompt_tokens(clock(), 500) == 100


def left(account: Account, now_s: float) -> float:
    """What is left to compute of what waits there, at 500 tokens a second."""
    return account.waiting_prompt_tokens(now_s, 500) - account.computed_tokens(now_s, 500)


def test_our_foremost_prompt_is_worked_on_until_its_first_token_and_those_behind_it_are_not() -> None:
    clock = FakeClock()
    ledger = Ledger(clock)
    first = ledger.book(KEY, 300)
    clock.advance(0.4)
    ledger.book(KEY, 300)
    account = ledger.accounts[KEY]
    assert left(account, clock()) == pytest.approx(100 + 300)
    clock.advance(0.2)
    assert left(account, clock()) == pytest.approx(300)
    first.first_token()
    assert left(account, clock()) == pytest.approx(300)
    clock.advance(0.4)
    assert left(account, clock()) == pytest.approx(100)


def test_the_foremost_prompt_is_worked_on_at_its_own_length() -> None:
    clock = FakeClock()
    ledger = Ledger(clock)
    long, short = ledger.book(KEY, 1000), ledger.book(KEY, 100)
    clock.advance(1.5)
    account = ledger.accounts[KEY]
    assert left(account, clock()) == pytest.approx(250 + 100)
    # One behind it that is over takes nothing of it.
    short.close()
    assert left(account, clock()) == pytest.approx(250)
    long.close()
    assert left(account, clock()) == 0


def test_a_prompt_that_is_late_counts_as_not_computed_the_later_the_more() -> None:
    clock = FakeClock()
    ledger = Ledger(clock)
    ledger.book(KEY, 300)
    account = ledger.accounts[KEY]
    waiting = []
    for _ in range(5):
        waiting.append(left(account, clock()))
        clock.advance(0.3)
    assert waiting == pytest.approx([300, 150, 0, 150, 300], abs=1e-6)


def test_what_was_idle_has_computed_nothing_of_the_next_prompt() -> None:
    clock = FakeClock()
    ledger = Ledger(clock)
    ledger.book(KEY, 300).close()
    clock.advance(60)
    ledger.book(KEY, 300)
    assert len(ledger.accounts[KEY].own_waiting) == 1
    assert left(ledger.accounts[KEY], clock()) == 300


def test_accounts_of_endpoints_that_are_gone_stay_while_something_of_ours_runs_there() -> None:
    ledger = Ledger(FakeClock())
    booking = ledger.book(KEY, 1)
    ledger.report(("a-2", "e1"), Load())
    ledger.keep([])
    assert set(ledger.accounts) == {KEY}
    booking.close()
    ledger.keep([])
    assert not ledger.accounts


def test_our_own_cached_tokens_are_nobody_elses_load() -> None:
    ledger = Ledger(FakeClock())
    booking = ledger.book(KEY, 100, cached_tokens=900)
    ledger.report(KEY, Load(waiting=1, waiting_prompt_tokens=1000))
    account = ledger.accounts[KEY]
    assert (account.others_streams, account.others_prompt_tokens) == (0, 0.0)
    booking.first_token()
    assert (account.own_prompt_tokens, account.own_whole_tokens) == (0, 0)


def test_where_others_are_what_we_send_stands_for_what_they_send() -> None:
    ledger = Ledger(FakeClock())
    for _ in range(4):
        ledger.book(KEY, 0)
    for _ in range(500):
        ledger.report(KEY, Load(running=16))  # three of theirs for each of ours
    account = ledger.accounts[KEY]
    assert account.peers == pytest.approx(3, rel=0.05)
    assert account.streams == pytest.approx(16, rel=0.05)
    ledger.book(KEY, 100)
    assert account.streams == pytest.approx(16 + 1 + 3, rel=0.05)
    assert account.waiting_prompt_tokens(0.0, 1000.0) == pytest.approx(400, rel=0.05)


def test_alone_it_believes_reports() -> None:
    ledger = Ledger(FakeClock())
    ledger.book(KEY, 100)
    for _ in range(500):
        ledger.report(KEY, Load(running=1, waiting_prompt_tokens=100))
    assert ledger.accounts[KEY].peers == 0.0
    assert ledger.accounts[KEY].streams == 1
