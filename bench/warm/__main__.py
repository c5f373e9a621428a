"""The warm path on real vLLM: `python -m bench.warm` writes a row for each request and prints the tables.

Consul, vLLM servers and a router for each policy, each a process of its own on this machine. Multi-turn sessions are
held through Stoker's own policy, round robin and least outstanding in turn, several rounds of each, on the same
servers: who is fast because the machine was quiet just then is found out by the next round. Then one server with two
models (`--residency NAME=FOLDER`) is asked to move them: cold load, sleep, wake, and what a request feels.

What follows `--` goes to all servers: `-- --vllm-dtype float32`; `--flag-residency=--FLAG=VALUE` to the server of the
residency part alone.
"""

import argparse
import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from bench.faults_vllm.mesh import ROOT, Mesh, ServerKind, running
from bench.turn import turn
from bench.warm import figures, residency
from bench.warm.figures import WARM_UP, Window
from bench.warm.load import Load, Offered, Row
from bench.warm.sessions import Shape, Words
from stoker_client import Client, StokerError

_MODEL = Path(os.environ.get("STOKER_MODEL") or ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct")
_POLICIES = ("stoker", "round-robin", "least-outstanding")
_LOADED_WITHIN_S = 400.0


class Results:
    """What there is so far: it is kept whenever the run ends."""

    def __init__(self) -> None:
        self.about: Row = {}
        self.windows: list[Window] = []
        self.steps: list[Row] = []

    def keep(self, out: Path) -> None:
        """Write the rows, print the tables."""
        measured = [window for window in self.windows if window.at != WARM_UP]
        with out.open("w", encoding="utf-8") as file:
            rows = [self.about, *(window.row() for window in self.windows)]
            rows += [row for window in self.windows for row in window.rows]
            file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in (*rows, *self.steps))
        for shown in (figures.policies(measured), figures.terms(measured), figures.moves(self.steps)):
            if shown:
                print(f"\n{shown}", flush=True)
        if self.steps:
            print(f"\n{residency.told(self.steps)}", flush=True)


async def policies(options: argparse.Namespace, folder: Path, results: Results) -> None:
    """The sessions, through each policy in turn."""
    kind = ServerKind(options.model, tuple(options.flags), _environment(options.env), cuttable=False, gpus=options.gpus)
    names = [f"vllm-{number}" for number in range(1, options.servers + 1)]
    routers = {f"router-{policy}": ("--policy", policy) for policy in options.policies}
    words = Words.of(options.model)
    shape = Shape(options.turns, options.first_tokens, options.turn_tokens, options.answer_tokens, options.spread)
    offered = Offered(
        options.name or options.model.name,
        *(options.sessions, options.rate, options.think, options.form == "chat", options.seed),
    )
    began_s = time.monotonic()
    async with AsyncExitStack() as held:
        mesh = await held.enter_async_context(running(kind, names, folder, routers))
        clients = {
            policy: await held.enter_async_context(Client(mesh.routers[f"router-{policy}"]))
            for policy in options.policies
        }
        for client in clients.values():
            await _usable(client, options.servers)
        results.about["loaded_s"] = round(time.monotonic() - began_s, 1)
        print(f"{options.servers} servers are up after {results.about['loaded_s']} s", flush=True)
        rounds = [(WARM_UP, options.warm_up), *((f"round-{n}", options.seconds) for n in range(options.rounds))]
        for place, (at, seconds) in enumerate(rounds):
            for step in range(len(options.policies)):
                policy = options.policies[(place + step) % len(options.policies)]
                load = Load(clients[policy], policy, at, shape, words, offered)
                async with turn(options.turn):
                    began_s = time.perf_counter()
                    try:
                        await load.run(seconds)
                    finally:
                        took_s = time.perf_counter() - began_s
                        results.windows.append(Window(policy, at, took_s, load.tokens, load.rows))
                done = sum(row["outcome"] == "ok" for row in load.rows)
                failed = [row["error"] for row in load.rows if "error" in row]
                print(f"{at} {policy}: {done} requests in {took_s:.1f} s, failed {failed[:3]}", flush=True)
        results.about["status"] = await _status(mesh, options.policies)


async def moves(options: argparse.Namespace, folder: Path, results: Results) -> None:
    """The two models on one server."""
    name, _, path = options.residency.partition("=")
    first = options.name or options.model.name
    flags = [*options.flags, *options.flag_residency, "--models", options.residency, "--max-hot", "1"]
    flags += ["--model-name", first]
    kind = ServerKind(options.model, tuple(flags), _environment(options.env), cuttable=False, gpus=options.gpus)
    began_s = time.monotonic()
    async with AsyncExitStack() as held:
        mesh = await held.enter_async_context(running(kind, ["vllm-two-models"], folder, {"router-residency": ()}))
        client = await held.enter_async_context(Client(mesh.routers["router-residency"]))
        await _usable(client, 1)
        began = {"step": "the server's start", "model": first, "seconds": round(time.monotonic() - began_s, 3)}
        results.steps.append(began)
        print(json.dumps(began), flush=True)
        steps = residency.Moves(client, first, name if path else Path(options.residency).name, options.patience)
        async with turn(options.turn):
            async for step in steps.run(options.cycles):
                results.steps.append(step)
                print(json.dumps(step), flush=True)


async def _usable(client: Client, servers: int) -> None:
    """Wait until a router would choose so many servers. Raises TimeoutError."""
    async with asyncio.timeout(_LOADED_WITHIN_S):
        while True:
            try:
                status = await client.status()
                there = [each for zone in status.zones for each in zone.endpoints if not each.excluded_by]
                if len(there) >= servers:
                    return
            except StokerError:
                pass  # it is starting
            await asyncio.sleep(0.2)


async def _status(mesh: Mesh, policies: Sequence[str]) -> Row:
    """What each router says of its own predictions, as `stoker status` has it."""
    said: Row = {}
    for policy in policies:
        async with Client(mesh.routers[f"router-{policy}"]) as client:
            status = await client.status()
        said[policy] = [
            {"server": each.endpoint.server, "model": of.model, "requests": of.requests}
            | {"error": round(of.error, 4), "bias": round(of.bias, 4)}
            for zone in status.zones
            for each in zone.endpoints
            for of in each.calibration
        ]
    return said


def _environment(given: Sequence[str]) -> dict[str, str]:
    return dict(each.split("=", 1) for each in given)


async def measure(options: argparse.Namespace, results: Results) -> None:
    """Both parts, as far as they are asked for."""
    with ExitStack() as held:
        folder = options.logs or Path(held.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        if options.rounds:
            await policies(options, folder, results)
        if options.residency:
            await moves(options, folder, results)


async def _until_told(work: Coroutine[None, None, None]) -> None:
    """Run it until it ends or SIGINT comes, of which `timeout` sends two: it is ended in order, and once."""
    task = asyncio.ensure_future(work)
    told = asyncio.Event()

    def end() -> None:
        told.set()
        task.cancel()

    # Also for a shell's background job, which ignores it by default.
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None if told.is_set() else end())
    try:
        await task
    except asyncio.CancelledError:
        print("ended before all was measured", flush=True)


def main() -> None:
    """Parse, run, write the rows, print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.warm", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument(
        "--gpus", type=int, default=0, help="give the servers one of so many each, in turn; 0: all see all"
    )
    parser.add_argument("--policies", default=",".join(_POLICIES), type=lambda text: text.split(","))
    parser.add_argument("--rounds", type=int, default=2, help="of each policy; 0 leaves this part out")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each round of a policy")
    parser.add_argument("--warm-up", type=float, default=10.0, help="seconds of each policy before the rounds")
    parser.add_argument("--sessions", type=int, default=8, help="at once: the next begins when one ends")
    parser.add_argument("--rate", type=float, help="sessions that begin a second instead, however many are under way")
    parser.add_argument("--think", type=float, default=0.0, help="seconds between an answer and the next turn")
    parser.add_argument("--turns", type=int, default=5, help="of a session")
    parser.add_argument("--first-tokens", type=int, default=300, help="of a session's first prompt, on average")
    parser.add_argument("--turn-tokens", type=int, default=60, help="of what later turns add, on average")
    parser.add_argument("--answer-tokens", type=int, default=24, help="of an answer, on average")
    parser.add_argument("--spread", type=float, default=0.5, help="how far lengths may be from the average, as a share")
    parser.add_argument("--form", choices=("chat", "ids"), default="chat", help="of prompts; ids for dummy weights")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, default=_MODEL, help="the model's folder")
    parser.add_argument("--name", default="", help="the model's name in the mesh; default: the folder's")
    parser.add_argument("--residency", default="", metavar="NAME=FOLDER", help="the second model of the residency part")
    parser.add_argument("--flag-residency", action="append", default=[], help="of the residency part's server")
    parser.add_argument("--patience", type=float, default=40.0, help="seconds that a hot model may keep its place")
    parser.add_argument("--cycles", type=int, default=3, help="of the residency part")
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE", help="of the servers")
    parser.add_argument("--turn", type=Path, help="a lock file: takes turns with other runs that name it")
    parser.add_argument("--logs", type=Path, help="folder to keep the processes' logs in")
    parser.add_argument("--out", type=Path, default=Path("bench/results/warm.jsonl"))
    parser.add_argument("flags", nargs="*", help="of the servers, after --")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    results = Results()
    results.about = {"about": {key: str(value) for key, value in vars(options).items() if key not in ("logs", "out")}}
    try:
        asyncio.run(_until_told(measure(options, results)))
    finally:
        results.keep(options.out)


if __name__ == "__main__":
    main()
