"""The relay benchmark: its ratios are within rounds, its page keeps notes, and events cut anywhere are counted once."""

import pytest

from bench.relay.load import Seen, Watcher
from bench.relay.load_http import _stamps
from bench.relay.report import NOTES, Run, page
from bench.relay.script import STAMP_DIGITS, stamp

pytestmark = pytest.mark.unit


def result(number: int, system: str, cost: float) -> dict[str, object]:
    return {"round": number, "system": system, "case": "paced 64", "cpu_us_per_token": cost, "itl_p99_ms": cost}


def run_of(*results: dict[str, object]) -> Run:
    about = dict.fromkeys(("date", "command", "commit", "machine", "python", "versions", "load_average"), "x")
    return Run({"about": about, "pick_us": {"8": 20.0}, "results": list(results)})


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    # The third round met a busy machine: both cost more, and their ratio is what it was.
    run = run_of(
        *(result(n, "stoker", cost) for n, cost in enumerate([30.0, 30.0, 90.0])),
        *(result(n, "smg", cost) for n, cost in enumerate([20.0, 20.0, 60.0])),
    )
    assert run.ratio("paced 64", "cpu_us_per_token", "stoker", "smg") == pytest.approx(1.5)


def test_the_target_is_the_better_of_the_rust_peers() -> None:
    run = run_of(result(0, "stoker", 30.0), result(0, "smg", 40.0), result(0, "vllm-router", 25.0))
    assert "≤ 1 x vllm-router | 1.20 x | **no**" in page(run, NOTES)


def test_the_link_is_held_against_half_of_the_better_rust_peer() -> None:
    run = run_of(result(0, "stoker link", 15.0), result(0, "smg", 40.0), result(0, "vllm-router", 25.0))
    assert "over the SDK's link, paced 64 | ≤ 0.5 x vllm-router | 0.60 x | **no**" in page(run, NOTES)


def test_what_is_added_is_beyond_the_same_protocol_without_a_router() -> None:
    run = run_of(
        result(0, "stoker", 25.0), result(0, "direct", 21.0), result(0, "smg", 23.0), result(0, "http direct", 22.0)
    )
    assert run.added("stoker", "paced 64", "itl_p99_ms") == pytest.approx(4.0)
    assert run.added("smg", "paced 64", "itl_p99_ms") == pytest.approx(1.0)


def test_notes_by_hand_stay() -> None:
    assert page(run_of(result(0, "stoker", 1.0)), f"{NOTES}\n\nWhat was tried.").endswith("What was tried.\n")


@pytest.mark.parametrize("cut", range(1, 60))
def test_an_event_cut_anywhere_is_seen_at_most_once_and_never_misread(cut: int) -> None:
    event = b'data: {"choices":[{"text": "' + stamp().encode() + b'"}]}\n\n'
    seen = Seen()
    watcher = Watcher(seen)
    first, second = event[:cut], event[cut:]
    _stamps(first, 0, watcher)
    tail = first[-11:]
    _stamps(tail + second, len(tail), watcher)
    assert len(seen.delays_ms) <= 1
    assert all(0 <= delay < 60_000 for delay in seen.delays_ms)


def test_a_stamp_is_as_long_as_it_says() -> None:
    assert len(stamp()) == STAMP_DIGITS
