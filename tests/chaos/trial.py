"""One trial: streams, a fault at a random moment, and what the history says of them."""

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.check import Verdict, judge, unfaulted
from tests.chaos.client import DEADLINE_S
from tests.chaos.faults import Fault
from tests.chaos.history import read
from tests.chaos.mesh import ZONES, ChaosMesh, NotReady
from tests.chaos.processes import Process
from tests.chaos.script import Ask, Load, script

# The fault comes while streams run: after most have started, before the first has ended.
EARLIEST_S, LATEST_S = 3.0, 6.0
# An in-flight counter may trail its stream: a vanished client's is ended by keepalive, within 7 s.
IDLE_WITHIN_S = 20.0


@dataclass(frozen=True, slots=True)
class Result:
    """What a trial came to. `broken`: what was wrong with the mesh afterwards; `wrong`: with streams, some of them."""

    fault: str
    seed: str
    control: bool
    did: str
    streams: int
    passed: int
    touched: int
    gap_s: float
    touched_gap_s: float
    wrong: tuple[str, ...]
    broken: str
    commit: str = ""

    @property
    def ok(self) -> bool:
        """Whether everything held."""
        return self.passed == self.streams and not self.broken


def run(mesh: ChaosMesh, fault: Fault, seed: str, streams: int, folder: Path, *, control: bool = False) -> Result:
    """Run one trial and bring the mesh back. Raises NotReady if it does not come back."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    clients: list[tuple[Process, tuple[Ask, ...]]] = []
    shares = (streams, 0) if fault.skewed else (streams - streams // 2, streams // 2)
    for zone, share in zip(ZONES, shares, strict=True):
        if share:
            how = "--control" if control else "--sdk" if fault.sdk else ""
            clients.append(_client(mesh, f"client-{zone}", zone, seed, share, folder, how))
    with _vanishing(mesh, fault, seed, folder):
        for process, _ in clients:
            process.start()
        # A busy machine takes seconds to start a process; the script's time begins with the history.
        mesh.until(lambda: all(_history(folder, process).exists() for process, _ in clients), "the clients ask")
        # A moment within the run, not a condition.
        time.sleep(rng.uniform(EARLIEST_S, LATEST_S))
        did = fault.inject(mesh, rng)
        stuck = _wait(clients)
    verdicts: list[Verdict] = []
    for process, asks in clients:
        verdicts += judge(read([_history(folder, process)]), asyncio.run(unfaulted(asks)))
    mesh.heal()
    broken = stuck or _settled(mesh)
    return _result(fault, seed, control, did, verdicts, broken)


def _result(fault: Fault, seed: str, control: bool, did: str, verdicts: list[Verdict], broken: str) -> Result:
    wrong = [f"{each.stream}: {each.wrong}" for each in verdicts if each.wrong]
    if not fault.reroutes and not control:
        # Its router was well: the client should have seen nothing.
        wrong += [f"{each.stream}: lost its router" for each in verdicts if each.rerouted and not each.wrong]
    touched = [each for each in verdicts if each.resumed]
    return Result(
        fault=fault.number,
        seed=seed,
        control=control,
        did=did,
        streams=len(verdicts),
        passed=len(verdicts) - len(wrong),
        touched=len(touched),
        gap_s=max((each.gap_s for each in verdicts if not each.wrong), default=0.0),
        touched_gap_s=max((each.gap_s for each in touched if not each.wrong), default=0.0),
        wrong=tuple(wrong[:5]),
        broken=broken,
    )


def _client(
    mesh: ChaosMesh, name: str, zone: str, seed: str, streams: int, folder: Path, how: str
) -> tuple[Process, tuple[Ask, ...]]:
    """A client of the zone, not started, and what it asks. `how`: the client's flag, empty for plain stubs."""
    load = Load(streams)
    out = folder / f"{name}.jsonl"
    if how == "--control":
        addresses = [server.address for server in mesh.of("server")]
    else:
        addresses = [mesh.router(each).address for each in sorted(ZONES, key=lambda each: each != zone)]
    argv = [sys.executable, "-m", "tests.chaos.client", "--name", name, "--seed", seed]
    argv += ["--addresses", ",".join(addresses), "--streams", str(load.streams), "--spread", str(load.spread_s)]
    argv += ["--shortest", str(load.shortest_tokens), "--longest", str(load.longest_tokens)]
    argv += ["--out", str(out), *filter(None, [how])]
    out.unlink(missing_ok=True)
    process = Process(name, "client", zone, mesh.places[zone], argv, folder / f"{name}.log")
    return process, script(seed, name, load)


def _history(folder: Path, client: Process) -> Path:
    return folder / f"{client.name}.jsonl"


@contextmanager
def _vanishing(mesh: ChaosMesh, fault: Fault, seed: str, folder: Path) -> Iterator[None]:
    """For the fault that needs it, a client that the fault kills."""
    if fault.number != "32":
        yield
        return
    process, _ = _client(mesh, "vanishing", ZONES[0], seed, 40, folder, "")
    mesh.processes["vanishing"] = process
    process.start()
    try:
        yield
    finally:
        del mesh.processes["vanishing"]
        process.kill()


def _wait(clients: list[tuple[Process, tuple[Ask, ...]]]) -> str:
    """Wait for the clients' ends. What went wrong, in words."""
    for process, _ in clients:
        try:
            code = process.wait(DEADLINE_S + 30.0)
        except subprocess.TimeoutExpired:
            process.kill()
            return f"{process.name} did not end"
        if code != 0:
            return f"{process.name} exited with {code}: see {process.log}"
    return ""


def _settled(mesh: ChaosMesh) -> str:
    """Wait until everything is registered again and nothing is in flight. What is not so, in words."""
    try:
        mesh.wait_ready()
        mesh.until(lambda: not mesh.not_idle(), "in-flight counters are 0", IDLE_WITHIN_S)
    except NotReady as error:
        return f"{error} ({mesh.not_idle() or 'all counters are 0'})"
    return ""
