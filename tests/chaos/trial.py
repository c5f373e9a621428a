"""One trial: streams, a fault at a random moment, and what the history says of them."""

import asyncio
import random
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.check import Verdict, judge, unfaulted
from tests.chaos.clients import ClientProcess, client
from tests.chaos.fault import Fault, Scene
from tests.chaos.history import read
from tests.chaos.mesh import ZONES, ChaosMesh
from tests.chaos.seen import NotReady

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
    refused: int = 0
    refused_p99_ms: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether everything held."""
        return self.passed == self.streams and not self.broken


def run(mesh: ChaosMesh, fault: Fault, seed: str, streams: int, folder: Path, *, control: bool = False) -> Result:
    """Run one trial and bring the mesh back. Raises NotReady if it does not come back."""
    folder.mkdir(parents=True, exist_ok=True)
    scene = Scene(mesh, random.Random(seed), seed, folder, streams)
    with fault.stage(scene) as inject:
        clients = _clients(scene, fault, "--control" if control else "--sdk" if fault.sdk else "")
        for each in clients:
            each.process.start()
        # A busy machine takes seconds to start a process; the script's time begins with the history.
        mesh.until(lambda: all(each.history.exists() for each in clients), "the clients ask")
        # A moment within the run, not a condition.
        time.sleep(scene.rng.uniform(EARLIEST_S, LATEST_S))
        did, undone = _inject(inject)
        stuck = _wait(clients, fault.load.deadline_s + 30.0) or undone
    verdicts: list[Verdict] = []
    for each in clients:
        expected = asyncio.run(unfaulted(each.asks))
        verdicts += judge(read([each.history]), expected, refusable=fault.crowd > 1.0)
    mesh.heal()
    broken = stuck or _settled(mesh)
    return _result(fault, seed, control, did, verdicts, broken)


def _inject(inject: Callable[[], str]) -> tuple[str, str]:
    """What was done, and what went wrong with it, in words: a trial that cannot be made must not end all others."""
    try:
        return inject(), ""
    except (NotReady, RuntimeError, subprocess.TimeoutExpired) as error:
        return "not as it should be", f"the fault was not made: {error}"


def _clients(scene: Scene, fault: Fault, how: str) -> list[ClientProcess]:
    """The zones' clients. `how`: the clients' flag."""
    streams = round(scene.streams * fault.crowd)
    shares = (streams, 0) if fault.skewed else (streams - streams // 2, streams // 2)
    return [
        client(scene, f"client-{zone}", zone, share, how, fault.load)
        for zone, share in zip(ZONES, shares, strict=True)
        if share
    ]


def _result(fault: Fault, seed: str, control: bool, did: str, verdicts: Sequence[Verdict], broken: str) -> Result:
    wrong = [f"{each.stream}: {each.wrong}" for each in verdicts if each.wrong]
    if not fault.reroutes and not control:
        # Its router was well: the client should have seen nothing.
        wrong += [f"{each.stream}: lost its router" for each in verdicts if each.rerouted and not each.wrong]
    touched = [each for each in verdicts if each.resumed]
    refused_s = sorted(each.refused_s for each in verdicts if each.refused_s is not None)
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
        refused=len(refused_s),
        refused_p99_ms=refused_s[int(len(refused_s) * 0.99)] * 1e3 if refused_s else 0.0,
    )


def _wait(clients: Sequence[ClientProcess], within_s: float) -> str:
    """Wait for the clients' ends. What went wrong, in words."""
    for each in clients:
        process = each.process
        try:
            code = process.wait(within_s)
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
        mesh.until(lambda: not mesh.seen.not_idle(), "in-flight counters are 0", IDLE_WITHIN_S)
    except NotReady as error:
        return f"{error} ({mesh.seen.not_idle() or 'all counters are 0'})"
    return ""
