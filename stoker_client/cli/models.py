"""`stoker models`: every model on every server, and how near to ready it is."""

import click
from rich.markup import escape

from stoker.v1 import model_pb2
from stoker_client.cli.printing import console, print_message, table
from stoker_client.cli.session import client_settings, common_flags, connected, run
from stoker_client.cli.status import residency, styled
from stoker_client.config import ClientSettings


@click.command()
@click.option("--zone", default="", help="Only this zone's.")
@click.option("--model", default="", help="Only this model.")
@common_flags
def models(zone: str, model: str, router: tuple[str, ...], timeout_s: float | None, as_json: bool) -> None:
    """List the models and where they are."""
    run(_models(client_settings(router, timeout_s), zone, model, as_json=as_json))


async def _models(settings: ClientSettings, zone: str, model: str, *, as_json: bool) -> None:
    async with connected(settings) as client:
        found = await client.models(zone=zone, model=model)
    if as_json:
        print_message(model_pb2.ListModelsResponse(models=found))
        return
    if not found:
        click.echo("no server can serve such a model now: `stoker status` shows what there is")
        return
    shown = table("", ("model", "zone", "server", "is"), ("ready in", "context"))
    for at in sorted(found, key=lambda at: (at.model.name, at.zone, at.server)):
        ready = f"{at.model.time_to_ready.ToMilliseconds() / 1000:.1f} s" if at.model.HasField("time_to_ready") else "-"
        tokens = f"{at.model.max_model_tokens} tokens"
        shown.add_row(
            escape(at.model.name), escape(at.zone), escape(at.server), styled(residency(at.model)), ready, tokens
        )
    console().print(shown)
