"""`stoker up`: a mesh on this machine, in the foreground or left behind."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import click
from rich.console import Console

from discovery.consul_agent import ConsulAgentError, find_consul
from stoker_client.cli.mesh_flags import SECTION, mesh_flags
from stoker_client.cli.settings import load
from stoker_client.mesh import state
from stoker_client.mesh.config import DEFAULT_MODEL, MeshSettings
from stoker_client.mesh.display import Screen
from stoker_client.mesh.folder import LOGS, AlreadyRuns, claimed, cleared
from stoker_client.mesh.logfile import last_lines
from stoker_client.mesh.plan import MeshPlan, ProcessPlan, plan
from stoker_client.mesh.ports import PortTaken, check_free
from stoker_client.mesh.readiness import Probe, leads, serving
from stoker_client.mesh.restarts import RestartPolicy
from stoker_client.mesh.state import Kind, Phase
from stoker_client.mesh.supervisor import Limits, Supervisor
from stoker_common.flags import flag

SUPERVISOR_LOG = "supervisor.log"
# Beyond what a process may take to drain, before it is killed; Consul has nothing to drain.
GRACE_S = 5.0
POLL_S = 0.1


@click.command()
@mesh_flags()
@click.option("--detach", is_flag=True, help="Return when all of it is up; `stoker down` ends it.")
@click.option("--supervise", is_flag=True, hidden=True, help="What --detach leaves behind.")
def up(detach: bool, supervise: bool, **flags: str | None) -> None:
    """Start a mesh on this machine and keep it running.

    Consul datacenters joined over the WAN, model servers, a router in each zone. Ends in order at Ctrl-C or SIGTERM; a
    second one ends it at once. Logs are in the run folder.
    """
    settings = load(MeshSettings, SECTION, flags)
    settings = settings.model_copy(update={"run_folder": settings.run_folder.resolve(), "model": _model(settings)})
    console = Console(stderr=True)
    try:
        if detach:
            with claimed(settings.run_folder):
                check_free(_plan(settings).ports)
            _leave_behind(settings, console)
        else:
            with claimed(settings.run_folder):
                mesh = _plan(settings)
                check_free(mesh.ports)
                if not supervise:
                    cleared(settings.run_folder)
                _run(settings, mesh, console, end_on_failure=supervise)
    except (AlreadyRuns, PortTaken, ConsulAgentError) as error:
        raise click.ClickException(str(error)) from error


def _model(settings: MeshSettings) -> str:
    """The servers' model: as set, else $STOKER_MODEL, else the one that set-up makes; the simulator brings its own."""
    named = settings.model or os.environ.get("STOKER_MODEL", "")
    if named or settings.engine == "sim":
        return named
    if not DEFAULT_MODEL.is_dir():
        raise click.ClickException(
            f"there is no model at {DEFAULT_MODEL}: `make setup` makes it, --model or $STOKER_MODEL names another, "
            "--engine sim needs none"
        )
    return str(DEFAULT_MODEL.resolve())


def _plan(settings: MeshSettings) -> MeshPlan:
    return plan(settings, settings.model, find_consul(Path.cwd()))


def _run(settings: MeshSettings, mesh: MeshPlan, console: Console, *, end_on_failure: bool) -> None:
    """Supervise the mesh in this process until it is told to end."""
    limits = Limits(
        ready_s=settings.ready_timeout_s,
        grace_s={
            Kind.ROUTER: settings.drain_s + GRACE_S,
            Kind.SERVER: settings.drain_s + GRACE_S,
            Kind.CONSUL: GRACE_S,
        },
        restarts=RestartPolicy(max_failures=settings.max_failures, window_s=settings.restart_window_s),
    )
    zones = tuple(dict.fromkeys(process.zone for process in mesh.processes))
    with Screen(console) as screen:
        supervisor = Supervisor(mesh, settings.run_folder, limits, partial(_probe, zones), screen.show, random.Random())
        well = asyncio.run(_until_told(supervisor, end_on_failure=end_on_failure))
    if supervisor.problem:
        raise click.ClickException(f"the mesh did not come up: {supervisor.problem}")
    if not well:
        raise click.ClickException("the mesh ended; not all of it ran to the end (see above)")


def _probe(zones: tuple[str, ...], process: ProcessPlan) -> Probe:
    if process.kind is Kind.CONSUL:
        return partial(leads, process.address, zones)
    return partial(serving, process.address)


async def _until_told(supervisor: Supervisor, *, end_on_failure: bool) -> bool:
    stop, kill = asyncio.Event(), asyncio.Event()

    def told() -> None:
        (kill if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, told)
    return await supervisor.run(stop, kill, end_on_failure=end_on_failure)


def _leave_behind(settings: MeshSettings, console: Console) -> None:
    """Start a supervisor in a session of its own and return when the mesh is up. Ctrl-C meanwhile ends it."""
    log = cleared(settings.run_folder) / SUPERVISOR_LOG
    argv = [sys.executable, "-m", "stoker_client", "up", "--supervise"]
    for key, value in settings.model_dump().items():
        written = ",".join(value) if isinstance(value, tuple) else str(value)
        argv += [flag(key), written] if written else []
    with log.open("wb") as output:
        supervisor = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        with Screen(console) as screen:
            while supervisor.poll() is None:
                now = state.read(settings.run_folder)
                if now is not None:
                    screen.show(now)
                    if now.phase is Phase.UP:
                        return
                time.sleep(POLL_S)
    except KeyboardInterrupt:
        supervisor.terminate()
        supervisor.wait()
        raise
    raise click.ClickException(_why(log))


def _why(log: Path) -> str:
    lines = last_lines(log, 30)
    starts = [number for number, line in enumerate(lines) if line.startswith("Error: ")]
    return "\n".join(lines[starts[-1] :] if starts else lines).removeprefix("Error: ") or f"see {log.parent / LOGS}"
