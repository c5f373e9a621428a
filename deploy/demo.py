"""What `make demo` runs: two zones, a real model, a killed server, and the other zone's answer. Exits 0 if all holds.

Everything shown is what happened: answers come from the model, rows from Consul, and each expectation is checked.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from discovery.codec import SERVICE
from discovery.consul_agent import ConsulAgentError, find_consul
from stoker_client import Client, Completion, StokerError
from stoker_client.cli.generate import summary
from stoker_client.mesh import identity, state
from stoker_client.mesh.config import DEFAULT_MODEL, ZONE_PORTS, MeshSettings
from stoker_client.mesh.plan import plan
from stoker_client.mesh.ports import PortTaken, check_free
from stoker_client.mesh.state import Kind, MeshState
from stoker_common.fold import Fold

PROMPT = "The capital of France is"
# What SmolLM2-135M-Instruct, and nearly every other model, says; only checked for the model that comes with set-up.
EXPECTED = "Paris"
RUN_FOLDER = Path(".cache/demo").resolve()
ZONES = 2
PORT_BASES = range(7070, 30_000, ZONES * ZONE_PORTS)
STOKER = (sys.executable, "-m", "stoker_client")
UP_LIMIT_S = 300.0
ANSWER_LIMIT_S = 60.0

console = Console(width=None if sys.stdout.isatty() else 120)


class DemoFailed(Exception):
    """Something is not as the demo promises."""


def main() -> int:
    """The exit status: 0 if everything held."""
    began_s = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        run()
    except (DemoFailed, StokerError, ConsulAgentError) as error:
        Console(stderr=True).print(Text(f"The demo failed: {error}", style="bold red"), soft_wrap=True)
        return 1
    console.print(f"[bold green]All of it held[/], in {time.monotonic() - began_s:.0f} s.")
    return 0


def run() -> None:
    """The demo. Raises DemoFailed; takes the mesh down in any case."""
    consul = find_consul(Path.cwd())
    model = os.environ.get("STOKER_MODEL") or str(DEFAULT_MODEL)
    stoker("down", "--run-folder", str(RUN_FOLDER), quiet=True)
    step(f"Start {ZONES} zones, each with Consul, a router and a vLLM server")
    console.print(f"The model is {model}", style="dim", markup=False, highlight=False, soft_wrap=True)
    try:
        stoker("up", "--zones", str(ZONES), "--detach", "--run-folder", str(RUN_FOLDER),
               "--port-base", str(free_base(consul)), "--ready-timeout-s", str(UP_LIMIT_S))  # fmt: skip
        mesh = state.read(RUN_FOLDER)
        if mesh is None:
            raise DemoFailed(f"`stoker up` left no state file in {RUN_FOLDER}")
        home = mesh.routers()[0]

        step(f"Ask the router of the home zone, {home}")
        first = asyncio.run(ask(home))
        check_answer(first)

        step("What ops see in Consul")
        show_catalog(consul, mesh)

        step(f"Kill {first.server}, which answered (SIGKILL)")
        kill(mesh, first.server)

        step("Ask the same router again")
        second = asyncio.run(ask(home))
        check_answer(second)
        if second.zone == first.zone or second.server == first.server:
            raise DemoFailed(f"{second.server} in {second.zone} answered again; another zone's server should have")
        if second.text != first.text:
            raise DemoFailed(
                f"the answers differ: {first.text!r} from {first.server}, {second.text!r} from {second.server}"
            )
        console.print(f"[green]✓[/] the same answer, now from [bold]{second.server}[/] in [bold]{second.zone}[/]")
    finally:
        step("Take all of it down")
        stoker("down", "--run-folder", str(RUN_FOLDER))


def step(what: str) -> None:
    """Announce what comes next."""
    console.print(Rule(Text(what, style="bold"), align="left"))


def stoker(*argv: str, quiet: bool = False) -> None:
    """Run the command as a user would. Raises DemoFailed if it fails; it has said why."""
    if not quiet:
        console.print(f"$ stoker {' '.join(argv)}", style="dim", markup=False, highlight=False, soft_wrap=True)
    ran = subprocess.run([*STOKER, *argv], stdout=subprocess.DEVNULL if quiet else None, check=False)
    if ran.returncode:
        raise DemoFailed(f"`stoker {argv[0]}` ended with {ran.returncode}; logs are in {RUN_FOLDER / 'logs'}")


def free_base(consul: Path) -> int:
    """The first block of ports that is free: another mesh may run here."""
    for base in PORT_BASES:
        try:
            check_free(plan(MeshSettings(zones=ZONES, port_base=base), "", consul).ports)
        except PortTaken:
            continue
        return base
    raise DemoFailed(f"no free block of ports from {PORT_BASES.start} on")


async def ask(router: str) -> Completion:
    """Ask by the SDK, and print the answer as it comes."""
    console.print(f"[bold]{PROMPT}[/]")
    fold, began_s, first_s = Fold(), time.monotonic(), 0.0
    async with Client(router, timeout_s=ANSWER_LIMIT_S) as client:
        model = (await client.models())[0].model.name
        async for chunk in client.stream(PROMPT, model=model, temperature=0.0, max_tokens=32):
            fold.add(chunk.response)
            first_s = first_s or (time.monotonic() if chunk.deltas else 0.0)
            console.print(chunk.text, end="", style="cyan", markup=False, highlight=False, soft_wrap=True)
    answer = fold.response()
    console.print()
    console.print(
        summary(answer, (first_s - began_s) * 1000), style="dim", markup=False, highlight=False, soft_wrap=True
    )
    return Completion(answer)


def check_answer(answer: Completion) -> None:
    """Raises DemoFailed unless this is an answer, and the right one where that is known."""
    if not answer.text.strip():
        raise DemoFailed(f"{answer.server} answered nothing")
    if not os.environ.get("STOKER_MODEL") and EXPECTED not in answer.text:
        raise DemoFailed(f"{answer.server} says {answer.text!r}; {EXPECTED} is missing")


def show_catalog(consul: Path, mesh: MeshState) -> None:
    """What Consul's own command says of both zones, by the home zone's agent, and each server's record."""
    agent = mesh.of_kind(Kind.CONSUL)[0].address
    for zone in dict.fromkeys(process.zone for process in mesh.processes):
        argv = ["consul", "catalog", "nodes", f"-service={SERVICE}", "-detailed", f"-datacenter={zone}"]
        console.print(f"$ {' '.join(argv)}", style="dim", markup=False, highlight=False)
        ran = subprocess.run([consul, *argv[1:], f"-http-addr={agent}"], capture_output=True, text=True, check=False)
        if ran.returncode or zone not in ran.stdout:
            raise DemoFailed(f"Consul shows no server of {zone}: {ran.stdout}{ran.stderr}")
        console.print(ran.stdout.strip(), markup=False, highlight=False, soft_wrap=True)
        path = f"/v1/health/service/{SERVICE}?dc={zone}"
        console.print(f"$ curl 'http://{agent}{path}'", style="dim", markup=False, highlight=False)
        with urllib.request.urlopen(f"http://{agent}{path}", timeout=10) as answer:
            rows = json.load(answer)
        if not rows:
            raise DemoFailed(f"http://{agent}{path} shows no server")
        for row in rows:
            console.print(record(row))


def record(row: dict[str, dict[str, object]]) -> Table:
    """A server's record in Consul: its Meta, pair by pair."""
    service = row["Service"]
    meta = service["Meta"]
    table = Table.grid(padding=(0, 2))
    table.add_row(Text(str(service["ID"]), style="bold"), f"{service['Address']}:{service['Port']}")
    for key, value in sorted(meta.items()) if isinstance(meta, dict) else ():
        table.add_row(f"  {key}", Text(str(value), style="cyan", overflow="fold"))
    return table


def kill(mesh: MeshState, server: str) -> None:
    """SIGKILL to the server's process, and to no other. Raises DemoFailed if it does not run here."""
    found = next((process for process in mesh.of_kind(Kind.SERVER) if process.name == server), None)
    if found is None or found.identity is None or not identity.send(found.identity, signal.SIGKILL):
        raise DemoFailed(f"{server} is no running process of this mesh")
    console.print(f"$ kill -9 {found.identity.pid}", style="dim", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
