"""`stoker models`: every model on every server and how near to ready it is; and moving one nearer or farther."""

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import click
from rich.markup import escape

from stoker.v1 import endpoint_pb2, model_pb2
from stoker_client.cli.printing import as_json as json_of
from stoker_client.cli.printing import console, note, print_message, table
from stoker_client.cli.session import client_settings, common_flags, connected, run
from stoker_client.cli.status import residency, styled
from stoker_client.client import Client
from stoker_client.config import ClientSettings

Ready = Callable[[Client], AsyncGenerator[model_pb2.ModelProgress, None]]
PutAway = Callable[[Client], Coroutine[Any, Any, endpoint_pb2.Model]]

_server = click.option("--server", default="", help="On this server. Default: the one where it is the cheapest.")
_grace = click.option(
    "--grace", "grace_s", type=click.FloatRange(min=0), help="Seconds for what runs on it. Default: until it has ended."
)


@click.group(invoke_without_command=True)
@click.option("--zone", default="", help="Only this zone's.")
@click.option("--model", default="", help="Only this model.")
@common_flags
@click.pass_context
def models(
    ctx: click.Context, zone: str, model: str, router: tuple[str, ...], timeout_s: float | None, as_json: bool
) -> None:
    """List the models and where they are, or move one: load, wake, sleep, unload."""
    if ctx.invoked_subcommand is None:
        run(_list(client_settings(router, timeout_s), zone, model, as_json=as_json))


@models.command()
@click.argument("model")
@_server
@common_flags
def load(model: str, server: str, router: tuple[str, ...], timeout_s: float | None, as_json: bool) -> None:
    """Make MODEL hot, however far away it is. Returns when it answers."""
    run(_ready(client_settings(router, timeout_s), lambda client: client.load_model(model, server=server), as_json))


@models.command()
@click.argument("model")
@_server
@common_flags
def wake(model: str, server: str, router: tuple[str, ...], timeout_s: float | None, as_json: bool) -> None:
    """Make MODEL, which sleeps, hot. Returns when it answers."""
    run(_ready(client_settings(router, timeout_s), lambda client: client.wake_model(model, server=server), as_json))


@models.command()
@click.argument("model")
@_server
@_grace
@common_flags
def sleep(
    model: str, server: str, grace_s: float | None, router: tuple[str, ...], timeout_s: float | None, as_json: bool
) -> None:
    """Move MODEL's weights to host memory; where there is no such sleep, out of memory."""

    def put_away(client: Client) -> Coroutine[Any, Any, endpoint_pb2.Model]:
        return client.sleep_model(model, server=server, grace_s=grace_s)

    run(_put_away(client_settings(router, timeout_s), put_away, as_json))


@models.command()
@click.argument("model")
@_server
@_grace
@common_flags
def unload(
    model: str, server: str, grace_s: float | None, router: tuple[str, ...], timeout_s: float | None, as_json: bool
) -> None:
    """Drop MODEL from memory; its weights stay on disk."""

    def put_away(client: Client) -> Coroutine[Any, Any, endpoint_pb2.Model]:
        return client.unload_model(model, server=server, grace_s=grace_s)

    run(_put_away(client_settings(router, timeout_s), put_away, as_json))


async def _list(settings: ClientSettings, zone: str, model: str, *, as_json: bool) -> None:
    async with connected(settings) as client:
        found = await client.models(zone=zone, model=model)
    if as_json:
        print_message(model_pb2.ListModelsResponse(models=found))
        return
    if not found:
        click.echo("no server can serve such a model now: `stoker status` shows what there is")
        return
    # What is no adapter has no base, and most meshes have no adapters.
    bases = any(at.model.base for at in found)
    shown = table("", ("model", *(["base"] if bases else []), "zone", "server", "is"), ("ready in", "context"))
    for at in sorted(found, key=lambda at: (at.model.name, at.zone, at.server)):
        ready = _ready_in(at.model) or "-"
        tokens = f"{at.model.max_model_tokens} tokens"
        names = [escape(at.model.name), *([escape(at.model.base) or "-"] if bases else [])]
        shown.add_row(*names, escape(at.zone), escape(at.server), styled(residency(at.model)), ready, tokens)
    console().print(shown)


async def _ready(settings: ClientSettings, ready: Ready, as_json: bool) -> None:
    """Show how far it is: for programs a JSON object a line, for people a line for each new thing that is done."""
    shown = ""
    async with connected(settings) as client, aclosing(ready(client)) as news:
        async for progress in news:
            if as_json:
                click.echo(json_of(progress, indent=None))
            elif progress.residency == endpoint_pb2.RESIDENCY_HOT:
                click.echo(f"hot on {progress.server}")
            else:
                line = f"{progress.server}: {progress.activity}"
                if progress.HasField("remaining"):
                    line += f" ({progress.fraction:.0%}, about {progress.remaining.ToMilliseconds() / 1000:.0f} s more)"
                if line != shown:
                    note(line)
                shown = line


async def _put_away(settings: ClientSettings, put_away: PutAway, as_json: bool) -> None:
    async with connected(settings) as client:
        model = await put_away(client)
    if as_json:
        print_message(model)
        return
    line = f"{model.name} is {residency(model)}"
    if ready := _ready_in(model):
        line += f", ready in {ready} when it is asked for"
    click.echo(line)


def _ready_in(model: endpoint_pb2.Model) -> str:
    """How long it takes to be ready; empty where nobody knows. An adapter takes milliseconds."""
    if not model.HasField("time_to_ready"):
        return ""
    ms = model.time_to_ready.ToMilliseconds()
    return f"{ms} ms" if ms < 100 else f"{ms / 1000:.1f} s"
