"""The relay benchmark: its ratios are within rounds, its page keeps notes, and events cut anywhere are counted once."""

import pytest

from bench.relay.__main__ import measured
from bench.relay.load import Seen, Watcher
from bench.relay.load_http import _stamps
from bench.relay.report import NOTES, Run, page
from bench.relay.script import SHORT, STAMP_DIGITS, stamp
from bench.relay.systems import System

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
    costs = {"stoker": 30.0, "stoker h2": 20.0, "smg": 40.0, "vllm-router": 25.0}
    run = run_of(*(result(0, name, cost) for name, cost in costs.items()))
    assert "≤ 1 x vllm-router | 1.20 x, **no** | 0.80 x, yes |" in page(run, NOTES)


def test_the_link_is_held_against_half_of_the_better_rust_peer() -> None:
    run = run_of(result(0, "stoker link", 15.0), result(0, "smg", 40.0), result(0, "vllm-router", 25.0))
    assert "over the SDK's link, paced 64 | ≤ 0.5 x vllm-router | 0.60 x, **no** | - |" in page(run, NOTES)


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


def test_direct_mode_is_held_against_what_the_better_rust_peer_spends_on_such_a_stream() -> None:
    costs = {"stoker direct": 900.0, "stoker h2 direct": 1320.0, "vllm-router": 1200.0, "smg": 1500.0}
    run = run_of(
        *({"round": 0, "system": name, "case": SHORT, "cpu_us_per_stream": cost} for name, cost in costs.items())
    )
    assert "direct mode | ≤ 1 x vllm-router | 0.75 x, yes | 1.10 x, **no** |" in page(run, NOTES)


def test_a_client_that_never_reads_is_judged_by_the_rounds_own_ratios() -> None:
    run = run_of(result(0, "stoker", 1.0))
    figures = {"rounds": 8, "ratio": 1.04, "ratio_p25": 0.9, "ratio_p75": 1.2, "itl_p99_beside_ms": 21.0}
    run.soak = {"stoker": {"slow reader": figures}}
    told = "1.04 x (21.0 ms; quartiles of 8 rounds 0.90 to 1.20), yes"
    assert f"≤ 1.1 x | {told} | - |" in page(run, NOTES)
    run.soak["stoker h2"] = {"slow reader": {**figures, "ratio": 1.2}}
    assert f"≤ 1.1 x | {told} | 1.20 x" in page(run, NOTES)
    left = {"streams": 100, "rss_ratio": 1.01, "rss_after_mib": 90, "descriptors_more": 1}
    run.soak["stoker h2"]["leftovers"] = left
    assert "after 100 streams more, half of them cancelled | ≤ 1.05 x, none left | - | 1.010 x" in page(run, NOTES)


def test_nothing_is_measured_of_a_system_where_it_has_nothing_to_show() -> None:
    direct, stoker = System("direct", "a:1", ()), System("stoker", "a:1", (1,))
    assert not measured(direct, SHORT)
    assert measured(stoker, SHORT)
    assert measured(System("stoker direct", "a:1", (1,)), "paced 64")
    assert not measured(System("stoker direct", "a:1", (1,)), "unpaced 64")
    assert not measured(System("stoker h2 direct", "a:1", (1,)), "unpaced 64")
