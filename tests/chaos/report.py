"""docs/reliability.md from the results: what passed, how sure that is, how long the silences were."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

from tests.chaos.fault import Fault
from tests.chaos.faults import FAULTS
from tests.chaos.trial import Result

_Z_95 = 1.959964


def wilson(passed: int, of: int) -> float:
    """The lower end of Wilson's 95 % interval for a share; 0 without observations."""
    if of == 0:
        return 0.0
    share, square = passed / of, _Z_95 * _Z_95
    spread = _Z_95 * math.sqrt(share * (1 - share) / of + square / (4 * of * of))
    return max(0.0, (share + square / (2 * of) - spread) / (1 + square / of))


def page(results: Sequence[Result], about: Sequence[str]) -> str:
    """The whole page. `about`: lines on machine, date, command."""
    ours = [result for result in results if not result.control]
    control = [result for result in results if result.control]
    lines = [
        "# Reliability",
        "",
        "<!-- Written by `make chaos-long` from its results. -->",
        "",
        "Real processes in two zones: Consul, simulated servers (5 tokens/s a stream), a router each, joined by an",
        "emulated WAN. Clients on plain stubs, at home in both zones, write down every part they get; a fault comes at",
        "a random moment; afterwards each stream is held against the unfaulted run. A stream passes if every token",
        "came once, in order, and text and usage are equal. A trial passes if all its streams do, every in-flight",
        "counter returns to 0, and every server is registered again.",
        "",
        *about,
        "",
        "`≥` is the lower end of Wilson's 95 % interval. *Went on elsewhere*: streams that changed server or router,",
        "also those that did so before their first token. The gap is the longest silence in any such stream after its",
        "first token (of all streams where none had to), by trial; the budget is the design's (killed 1 s, frozen or",
        "cut off 3 s) and 1 s for the resume: a step or two of 200 ms and a busy machine.",
        "",
        "| fault | trials passed | ≥ | streams passed | ≥ | went on elsewhere | gap p50 / max, s | budget, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *_rows(ours),
        "",
        _sum(ours),
        "",
        *_refusals(ours),
        *_left_out(ours),
        *_failures(ours),
    ]
    if control:
        lines += [
            "## Plain gRPC on the same script",
            "",
            "Round robin straight to the servers, with gRPC's own retries (UNAVAILABLE, five attempts) and the same",
            "keepalive.",
            "",
            "| fault | trials without loss | streams passed | lost |",
            "| --- | --- | --- | --- |",
            *_control_rows(control),
            "",
        ]
    return "\n".join(lines)


def _by_fault(results: Iterable[Result]) -> list[tuple[Fault, list[Result]]]:
    grouped: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        grouped[result.fault].append(result)
    return [(fault, grouped[fault.number]) for fault in FAULTS if fault.number in grouped]


def _rows(results: Sequence[Result]) -> Iterable[str]:
    for fault, trials in _by_fault(results):
        gaps = [each.touched_gap_s if each.touched else each.gap_s for each in trials]
        passed, streams = sum(each.passed for each in trials), sum(each.streams for each in trials)
        well = sum(each.ok for each in trials)
        yield (
            f"| {fault.number} {fault.name} | {well} of {len(trials)} | {wilson(well, len(trials)):.1%} "
            f"| {passed} of {streams} | {wilson(passed, streams):.2%} | {sum(each.touched for each in trials)} "
            f"| {median(gaps):.2f} / {max(gaps):.2f}{' **over**' if max(gaps) > fault.gap_s else ''} "
            f"| {fault.gap_s:g} |"
        )


def _sum(results: Sequence[Result]) -> str:
    trials, well = len(results), sum(each.ok for each in results)
    passed, streams = sum(each.passed for each in results), sum(each.streams for each in results)
    return (
        f"Together: {well} of {trials} trials (≥ {wilson(well, trials):.1%}), {passed} of {streams} streams "
        f"(≥ {wilson(passed, streams):.2%})."
    )


def _left_out(results: Sequence[Result]) -> list[str]:
    """What the table does not show, and how what it shows differs from the plan."""
    seen = {result.fault for result in results}
    unseen = [f"{fault.number} {fault.name}" for fault in FAULTS if fault.number not in seen]
    return [
        *([f"No trial yet: {', '.join(unseen)}.", ""] if unseen else []),
        "Left out: 30, certificates that expire or are rotated, until the mesh speaks TLS. 17 lasts to the end of a",
        "trial, not ten minutes. 28 moves the wall clock of single processes by libfaketime, not the machine's, and",
        "Consul's not at all. 26 shows that what is accepted is whole and what is refused is told so at once; goodput",
        "and the return to normal are in [reliability-overload.md](reliability-overload.md).",
        "",
    ]


def _refusals(results: Sequence[Result]) -> list[str]:
    """How the refusals were, which count as passed where more is asked than there is room for."""
    lines = []
    for fault, trials in _by_fault(results):
        if fault.crowd > 1.0:
            refused, streams = sum(each.refused for each in trials), sum(each.streams for each in trials)
            late = ", ".join(f"{each.refused_p99_ms:.0f} ms" for each in trials)
            lines.append(
                f"{fault.number} {fault.name}: {refused} of {streams} streams were refused, typed and before their "
                f"first token (p99 by trial: {late}); those pass, the others must be whole."
            )
    return [line for each in lines for line in (each, "")]


def _failures(results: Sequence[Result]) -> list[str]:
    failed = [result for result in results if not result.ok]
    if not failed:
        return []
    lines = ["## What failed", ""]
    for result in failed:
        said = [f"{result.streams - result.passed} streams, such as {each}" for each in result.wrong[:1]]
        said += [result.broken] if result.broken else []
        lines.append(f"- {result.fault}, seed `{result.seed}` ({result.did}): {'; '.join(said)}")
    return [*lines, ""]


def _control_rows(results: Sequence[Result]) -> Iterable[str]:
    for fault, trials in _by_fault(results):
        passed, streams = sum(each.passed for each in trials), sum(each.streams for each in trials)
        well = sum(each.passed == each.streams for each in trials)
        yield (
            f"| {fault.number} {fault.name} | {well} of {len(trials)} | {passed} of {streams} "
            f"| {streams - passed} ({(streams - passed) / streams:.1%}) |"
        )
