import pytest

from discovery.endpoint import Load
from router.ledger import Ledger, Typical
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


def test_the_last_of_ours_to_have_its_first_token_is_as_late_as_the_one_before_it_was() -> None:
    clock = FakeClock()
    ledger = Ledger(clock)
    first = ledger.book(KEY, 300, expected_ms=600)
    ledger.book(KEY, 300, expected_ms=1200)
    account = ledger.accounts[KEY]
    assert account.due_ms(clock()) == pytest.approx(1200)
    clock.advance(0.5)
    assert account.due_ms(clock()) == pytest.approx(700)
    # The foremost is late: so is what waits behind it, for as long as nobody knows better.
    clock.advance(0.5)
    assert account.due_ms(clock()) == pytest.approx(600)
    first.first_token()
    assert account.due_ms(clock()) == pytest.approx(600)
    clock.advance(0.25)
    assert account.due_ms(clock()) == pytest.approx(350)


def test_who_is_early_makes_those_behind_it_early_and_nobody_before_it() -> None:
    clock = FakeClock()
    ledger = Ledger(clock)
    foremost, second, last = (ledger.book(KEY, 100, expected_ms=ms) for ms in (100, 200, 300))
    clock.advance(0.15)
    second.first_token()
    account = ledger.accounts[KEY]
    assert account.due_ms(clock()) == pytest.approx(250 - 100)
    foremost.close()
    assert account.due_ms(clock()) == pytest.approx(100)
    last.close()
    assert account.due_ms(clock()) == 0.0


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


def test_where_servers_tell_cached_tokens_apart_others_queues_are_what_is_computed() -> None:
    ledger = Ledger(FakeClock())
    ledger.book(KEY, 100, cached_tokens=900)
    ledger.report(KEY, Load(waiting=3, waiting_prompt_tokens=5000, waiting_cached_prompt_tokens=4500))
    account = ledger.accounts[KEY]
    assert (account.others_streams, account.others_prompt_tokens) == (2, 400)
    ledger.report(KEY, Load(waiting=3, waiting_prompt_tokens=1000, waiting_cached_prompt_tokens=1000))
    assert account.others_prompt_tokens == 0


def test_what_the_catalog_says_counts_half_beside_what_we_sent_ourselves() -> None:
    clock = FakeClock()
    ledger = Ledger(clock)
    ledger.book(KEY, 0)
    for _ in range(500):
        ledger.report(KEY, Load(running=4))
    account = ledger.accounts[KEY]
    clock.advance(3)
    ledger.published(KEY, Load(running=20))
    # It says 19, and we have sent 1 for about three of theirs.
    assert account.streams == pytest.approx(1 + (19 + account.peers) / 2)
    ledger.report(KEY, Load(running=20))
    assert account.streams == 20


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


def test_late_tokens_of_a_prompt_count_for_what_they_take() -> None:
    ledger = Ledger(FakeClock())
    ledger.report(KEY, Load(attention_tokens=1000))
    account = ledger.accounts[KEY]
    whole = ledger.book(KEY, 2000)
    assert account.own_prompt_tokens == 4000
    ledger.book(KEY, 1000, cached_tokens=1000)
    assert account.own_prompt_tokens == 4000 + 2500
    assert account.own_whole_tokens == 4000 + 4000
    assert account.context_tokens == 4000
    whole.close()
    ledger.report(KEY, Load(attention_tokens=1000))
    assert (account.own_prompt_tokens, account.context_tokens) == (2500, 2000)


def test_contexts_are_those_reported_and_what_was_sent_since() -> None:
    ledger = Ledger(FakeClock())
    ledger.report(KEY, Load(running=1, context_tokens=5000))
    ledger.book(KEY, 100, cached_tokens=900)
    account = ledger.accounts[KEY]
    assert account.context_tokens == 6000
    ledger.report(KEY, Load(running=2, context_tokens=6100))
    assert account.context_tokens == 6100
    ledger.report(KEY, Load())  # made before the request was there
    assert account.context_tokens == 1000


def test_no_prompt_of_others_waits_where_they_have_no_stream() -> None:
    """What a server counts of ours may differ a little from what we do."""
    ledger = Ledger(FakeClock())
    ledger.book(KEY, 1000)
    ledger.report(KEY, Load(waiting=1, waiting_prompt_tokens=1100))
    assert ledger.accounts[KEY].others_prompt_tokens == 0
    ledger.report(KEY, Load(waiting=2, waiting_prompt_tokens=1100))
    assert ledger.accounts[KEY].others_prompt_tokens == 100


def test_what_is_typical_follows_reports_that_say_something() -> None:
    ledger = Ledger(FakeClock())
    assert ledger.typical == Typical()
    ledger.report(KEY, Load(prefill_tokens_per_second=1000, itl_ms=10))
    ledger.report(("b", "1"), Load())
    assert ledger.typical == Typical(prefill_tokens_per_second=1000, itl_ms=10)
    for _ in range(500):
        ledger.report(("b", "1"), Load(prefill_tokens_per_second=3000, attention_tokens=7, step_ms_per_context_token=2))
    assert ledger.typical.prefill_tokens_per_second == pytest.approx(3000, rel=0.01)
    assert (ledger.typical.attention_tokens, ledger.typical.step_ms_per_context_token) == (7, 2)
