"""What came of the trials as rows to keep, and the rows as tables."""

import hashlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.faults_vllm import checks
from bench.faults_vllm.kinds import Asked
from bench.faults_vllm.stream import Came
from bench.faults_vllm.trials import NONE, Trial

Row = dict[str, Any]


def rows(trials: Sequence[Trial], asked: Sequence[Asked], decode: checks.Decode) -> list[Row]:
    """One for each stream of each trial. Controls are all the trials without a fault, before and among the others.

    A stream that failed in one of them or went on elsewhere (a busy machine may do that) is none.
    """
    calm = [trial.came for trial in trials if trial.fault == NONE]
    controls = {
        each.name: [came[each.name] for came in calm if not (came[each.name].resumed or came[each.name].error)]
        for each in asked
    }
    made: list[Row] = []
    for number, trial in enumerate(trials):
        for each in asked:
            came, control = trial.came[each.name], controls[each.name]
            made.append(
                {
                    "trial": number,
                    "fault": trial.fault,
                    "hit": trial.hit,
                    "excluded_s": trial.excluded_s,
                    "exit_s": trial.exit_s,
                    "back_s": trial.back_s,
                    "stream": each.name,
                    "kind": each.kind,
                    "wrong": checks.wrong(each, came, decode),
                    "control_repeats": checks.repeats(control),
                    "as_control": bool(control) and checks.same(came, control[0]),
                    "differs_at": checks.first_difference(came.ids, control[0].ids) if control else None,
                    **_told(came),
                }
            )
    return made


def _told(came: Came) -> Row:
    return {
        "tokens": len(came.ids),
        "ids_sha256": hashlib.sha256(repr(came.ids).encode()).hexdigest()[:16],
        "finish": came.finish,
        "longest_gap_s": round(came.longest_gap_s, 4),
        "gap_at": came.gap_at,
        "servers": came.servers,
        "delivered": came.delivered,
        "modes": came.modes,
        "exactness": came.exactness,
        "error": came.error,
    }


def report(made: Sequence[Row]) -> str:
    """By fault and kind, then the gaps by fault and mode."""
    return "\n\n".join(filter(None, (_by_kind(made), _by_mode(made), _servers(made))))


def _table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    written = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in written)


def _groups(made: Sequence[Row], *keys: str) -> Mapping[tuple[Any, ...], list[Row]]:
    grouped: dict[tuple[Any, ...], list[Row]] = {}
    for row in made:
        grouped.setdefault(tuple(row[key] for key in keys), []).append(row)
    return grouped


def _by_kind(made: Sequence[Row]) -> str:
    lines = []
    for (fault, kind), mine in _groups(made, "fault", "kind").items():
        resumed = [row for row in mine if row["modes"]]
        held = [row for row in resumed if row["control_repeats"]]
        calm = [row for row in mine if not row["modes"] and row["control_repeats"]]
        lines.append(
            [
                *(fault, kind, len(mine), sum(bool(row["wrong"]) for row in mine)),
                *(len(resumed), ", ".join(sorted({mode for row in resumed for mode in row["modes"]}))),
                *(_of(held), _of(calm), f"{len({row['stream'] for row in mine if row['control_repeats']})}"),
            ]
        )
    head = ["fault", "kind", "streams", "wrong", "resumed", "modes"]
    return _table([*head, "resumed as control", "untouched as control", "requests whose control repeats"], lines)


def _of(compared: Sequence[Row]) -> str:
    return f"{sum(row['as_control'] for row in compared)} of {len(compared)}" if compared else ""


def _by_mode(made: Sequence[Row]) -> str:
    lines = []
    for (fault,), mine in _groups([row for row in made if row["fault"] != NONE], "fault").items():
        once = [
            row | {"mode": row["modes"][0] if len(row["modes"]) == 1 else "several"} for row in mine if row["modes"]
        ]
        untouched = [row | {"mode": "untouched"} for row in mine if not row["modes"]]
        for (mode,), those in sorted(_groups([*once, *untouched], "mode").items()):
            gaps = sorted(1000 * row["longest_gap_s"] for row in those)
            at = sorted(row["gap_at"] for row in those)
            lines.append(
                [
                    *(fault, mode, len(those), f"{at[0]} to {at[-1]}"),
                    *(f"{each:.0f}" for each in (statistics.median(gaps), _p95(gaps), gaps[-1])),
                ]
            )
    if not lines:
        return ""
    head = ["fault", "mode", "streams", "tokens before the gap"]
    return _table([*head, "longest gap: median, ms", "p95, ms", "most, ms"], lines)


def _p95(ordered: Sequence[float]) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)]


def _servers(made: Sequence[Row]) -> str:
    lines = []
    for (number, fault), mine in _groups(
        [row for row in made if row["excluded_s"] is not None], "trial", "fault"
    ).items():
        row = mine[0]
        times = [row["excluded_s"], row["exit_s"], row["back_s"]]
        lines.append([number, fault, row["hit"], *("" if each is None else f"{each:.2f}" for each in times)])
    if not lines:
        return ""
    return _table(["trial", "fault", "server", "noticed, s", "gone by itself, s", "back after its start, s"], lines)
