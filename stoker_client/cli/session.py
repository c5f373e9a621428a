"""What the commands that call a mesh share: the client, the model, and errors as one readable line."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import click

from stoker_client.cli.settings import load
from stoker_client.client import Client
from stoker_client.config import DEFAULT_ROUTER, ClientSettings
from stoker_client.errors import StokerError
from stoker_client.mesh import state
from stoker_client.mesh.config import MeshSettings
from stoker_client.mesh.identity import alive
from stoker_common import tracing

Result = TypeVar("Result")
Command = TypeVar("Command", bound=Callable[..., Any])


def common_flags(command: Command) -> Command:
    """The flags of every command that calls a mesh."""
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)
    command = click.option("--timeout", "timeout_s", type=float, help="What the call may take, in seconds.")(command)
    return click.option(
        "--router",
        multiple=True,
        metavar="HOST:PORT|consul://HOST:PORT",
        help="The router to ask, or the Consul agent that knows routers; several are tried in order. "
        f"Default: the local mesh's, else {DEFAULT_ROUTER}.",
    )(command)


def client_settings(
    router: tuple[str, ...], timeout_s: float | None, model: str | None = None, mode: str | None = None
) -> ClientSettings:
    """The settings of a call, from its flags and all else that may say."""
    return load(ClientSettings, "client", {"router": router, "timeout_s": timeout_s, "model": model, "mode": mode})


def local_mesh() -> state.MeshState | None:
    """The mesh that runs on this machine under the settings' run folder, None if none does."""
    mesh = state.read(load(MeshSettings, "mesh", {}).run_folder)
    return mesh if mesh is not None and alive(mesh.supervisor) else None


def routers(settings: ClientSettings) -> tuple[str, ...]:
    """The addresses to ask: as set, else the local mesh's, else the default."""
    if settings.router:
        return settings.router
    mesh = local_mesh()
    return (mesh.routers() if mesh is not None else ()) or (DEFAULT_ROUTER,)


@asynccontextmanager
async def connected(settings: ClientSettings) -> AsyncIterator[Client]:
    """A client by these settings."""
    traces = tracing.configure("stoker-client", settings.otlp_endpoint or None)
    try:
        client = Client(
            routers(settings),
            timeout_s=settings.timeout_s,
            connect_timeout_s=settings.connect_timeout_s,
            tracer=traces.tracer,
            mode=settings.mode,
            http2=settings.http2,
        )
    except ValueError as error:
        raise click.UsageError(f"client.router: {error}") from error
    try:
        async with client:
            yield client
    finally:
        traces.shutdown()


async def model_of(client: Client, settings: ClientSettings) -> str:
    """The model to ask: as set, else the only one that is no adapter. Raises click.UsageError if that is not clear."""
    if settings.model:
        return settings.model
    names = sorted({found.model.name for found in await client.models() if not found.model.base})
    if len(names) == 1:
        return names[0]
    known = (
        f"there are {', '.join(names)}: choose one with --model" if names else "no server has one: see `stoker status`"
    )
    raise click.UsageError(f"which model? {known}")


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a command's work; what the mesh refuses ends it with 1 and one line that says what to do."""
    try:
        return asyncio.run(work)
    except StokerError as error:
        raise click.ClickException(sentence(error)) from error


def sentence(error: StokerError) -> str:
    """An error as a line for a person: what, which field, when to come back."""
    line = f"{error.code.name}: {error.message}"
    if error.field and error.field not in error.message:
        line += f" (field {error.field})"
    if error.retry_after_s is not None:
        line += f"; try again in {error.retry_after_s:g} s"
    return line
