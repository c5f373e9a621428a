"""`make chaos-long`: every fault, trial by trial; goes on where it was stopped; writes docs/reliability.md."""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from bench.commit import commit
from tests.chaos.fault import Fault
from tests.chaos.faults import BY_NUMBER, FAULTS
from tests.chaos.mesh import ChaosMesh, MeshPlan, running
from tests.chaos.places import why_no_namespaces
from tests.chaos.processes import ROOT
from tests.chaos.report import page
from tests.chaos.seen import NotReady
from tests.chaos.trial import Result, run

PAGE = ROOT / "docs" / "reliability.md"


def main(argv: Sequence[str] | None = None) -> int:
    """0 if every trial, of this run and of those before, passed."""
    options = _options(argv)
    why = why_no_namespaces()
    if why:
        print(f"chaos: {why}; without network namespaces only the faults that need none, on loopback")  # noqa: T201
    faults = [BY_NUMBER[number] for number in options.faults.split(",")] if options.faults else list(FAULTS)
    faults = [fault for fault in faults if not (why and fault.namespaces)]
    for fault in faults:
        if fault.needs():
            print(f"chaos: {fault.number} {fault.name} is left out: {fault.needs()}")  # noqa: T201
    faults = [fault for fault in faults if not fault.needs()]
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / "results.jsonl"
    done = {(each.fault, each.seed, each.control) for each in _read(file)}
    todo = [each for each in _trials(faults, options) if (each[0].number, each[1], each[2]) not in done]
    print(f"chaos: {len(done)} trials done before, {len(todo)} to do; {options.folder}")  # noqa: T201
    ends_s = time.monotonic() + options.minutes * 60
    _run(todo, options, file, ends_s, namespaces=not why)
    results = list(_read(file))
    options.page.write_text(page(results, _about(options, results)))
    print(f"chaos: {sum(each.ok for each in results if not each.control)} of "  # noqa: T201
          f"{sum(not each.control for each in results)} trials passed; {options.page}")  # fmt: skip
    return 0 if all(each.ok for each in results if not each.control) else 1


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--trials", type=int, default=10, help="of each fault")
    parser.add_argument("--control-trials", type=int, default=3, help="the same with plain gRPC, where it applies")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--faults", default="", help="numbers, such as 1,2,10; default: all")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no trial after so long")
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "chaos", help="results, histories and logs")
    parser.add_argument("--note", action="append", default=[], help="a line for the page; may be given again")
    parser.add_argument("--page", type=Path, default=PAGE)
    return parser.parse_args(argv)


def _trials(faults: Sequence[Fault], options: argparse.Namespace) -> Iterator[tuple[Fault, str, bool]]:
    """Round by round, so that whoever stops early has something of each."""
    for number in range(max(options.trials, options.control_trials)):
        for fault in faults:
            if number < options.trials:
                yield fault, f"{fault.number}-{number}-{options.streams}", False
        for fault in faults:
            if fault.servers and number < options.control_trials:
                yield fault, f"{fault.number}-{number}-{options.streams}", True


def _run(
    todo: Iterable[tuple[Fault, str, bool]], options: argparse.Namespace, file: Path, ends_s: float, *, namespaces: bool
) -> None:
    mesh: ChaosMesh | None = None
    with ExitStack() as held:
        for fault, seed, control in todo:
            if time.monotonic() > ends_s:
                break
            if mesh is None:
                folder = options.folder / f"mesh-{int(time.time())}"
                mesh = held.enter_context(running(MeshPlan(), folder, namespaces=namespaces))
            name = f"{'control-' if control else ''}{seed}"
            found = run(mesh, fault, seed, options.streams, options.folder / "trials" / name, control=control)
            result = replace(found, commit=commit())
            with file.open("a") as results:
                results.write(json.dumps(asdict(result), ensure_ascii=False) + "\n")
            _tell(result, fault)
            if result.broken:
                # What one trial broke must not fail the next one.
                held.close()
                mesh = None


def _tell(result: Result, fault: Fault) -> None:
    refused = f"{result.refused} refused (p99 {result.refused_p99_ms:.0f} ms), " if result.refused else ""
    kind = "control" if result.control else "ok    " if result.ok else "FAILED"
    print(  # noqa: T201
        f"{datetime.now().time():%H:%M:%S} {kind} {fault.number:>2} {fault.name} [{result.seed}]: {result.did}; "
        f"{result.passed}/{result.streams} streams, {refused}{result.touched} went on elsewhere, "
        f"gap {result.touched_gap_s:.2f} of {result.gap_s:.2f} s; {' | '.join(result.wrong[:2])} {result.broken}",
        flush=True,
    )


def _read(file: Path) -> Iterator[Result]:
    if file.exists():
        for line in file.read_text().splitlines():
            fields = json.loads(line)
            yield Result(**{**fields, "wrong": tuple(fields["wrong"])})


def _about(options: argparse.Namespace, results: Sequence[Result]) -> list[str]:
    commits = ", ".join(sorted({each.commit for each in results if each.commit}))
    plan = MeshPlan()
    place = "two network namespaces" if not why_no_namespaces() else f"loopback ({why_no_namespaces()})"
    return [
        f"- {options.streams} streams a trial, 2 zones of {plan.servers_per_zone} servers, Consul servers: "
        f"{plan.consul_servers[0]} and {plan.consul_servers[1]}; {place}.",
        f"- Servers notice a stuck engine after {plan.stuck_after_s:g} s and drain for {plan.drain_s:g} s.",
        f"- {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}; "
        f"{datetime.now(UTC):%Y-%m-%d}; commits: {commits}.",
        f"- `make chaos-long`, that is `python -m tests.chaos --trials {options.trials} --streams {options.streams}`; "
        "seeds are FAULT-TRIAL-STREAMS.",
        *(f"- {note}" for note in options.note),
    ]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NotReady as error:
        print(f"chaos: {error}")  # noqa: T201
        sys.exit(2)
