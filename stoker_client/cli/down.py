"""`stoker down`: ends the mesh that runs on this machine, and no process that is not its own."""

import signal
import time
from collections.abc import Callable

import click

from stoker_client.cli.mesh_flags import SECTION, mesh_flags
from stoker_client.cli.settings import load
from stoker_client.mesh import identity, state
from stoker_client.mesh.config import MeshSettings
from stoker_client.mesh.state import Kind, MeshState

POLL_S = 0.05
# Beyond what the supervisor allows its processes.
SLACK_S = 10.0


@click.command()
@mesh_flags("run_folder")
def down(**flags: str | None) -> None:
    """End the mesh that runs on this machine: routers and servers finish what they do, Consul goes last."""
    folder = load(MeshSettings, SECTION, flags).run_folder.resolve()
    mesh = state.read(folder)
    if mesh is None:
        click.echo(f"no mesh runs in {folder}")
        return
    if identity.send(mesh.supervisor, signal.SIGTERM):
        if not _within(mesh.ends_within_s + SLACK_S, lambda: not identity.alive(mesh.supervisor)):
            click.echo("its supervisor did not end in time and is killed", err=True)
            identity.send(mesh.supervisor, signal.SIGKILL)
    _end_orphans(mesh)
    state.remove(folder)
    click.echo(f"the mesh is down; its logs stay in {folder / 'logs'}")


def _end_orphans(mesh: MeshState) -> None:
    """Kill what outlived the supervisor. Its processes die with it: this is for the moment until they do."""
    left = [process.identity for kind in Kind for process in mesh.of_kind(kind) if process.identity is not None]
    for orphan in left:
        identity.send(orphan, signal.SIGKILL)
    _within(SLACK_S, lambda: not any(identity.alive(orphan) for orphan in left))


def _within(seconds: float, done: Callable[[], bool]) -> bool:
    """Whether `done` came true in time."""
    end_s = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= end_s:
            return False
        time.sleep(POLL_S)
    return True
