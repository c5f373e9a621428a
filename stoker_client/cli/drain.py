"""`stoker drain`: makes a server leave; its streams go on elsewhere."""

import asyncio

import click

from stoker.v1 import router_pb2
from stoker_client.cli.printing import print_message
from stoker_client.cli.session import client_settings, common_flags, connected, run
from stoker_client.client import Client
from stoker_client.config import ClientSettings

_LOOK_EVERY_S = 0.1


@click.command()
@click.argument("server")
@click.option("--grace", "grace_s", type=click.FloatRange(min=0), help="Seconds that streams may stay there first.")
@common_flags
def drain(server: str, grace_s: float | None, router: tuple[str, ...], timeout_s: float | None, as_json: bool) -> None:
    """Make SERVER leave: nothing new goes there, its streams go on elsewhere, its process ends with 0.

    Returns when it has left. A supervisor may start it again, as `stoker up` does: so servers are restarted one by one.
    To keep one out, use `consul maint`.
    """
    run(_drain(client_settings(router, timeout_s), server, grace_s, as_json=as_json))


async def _drain(settings: ClientSettings, server: str, grace_s: float | None, *, as_json: bool) -> None:
    async with connected(settings) as client:
        epochs = await _epochs(client, server)
        drained = await client.drain(server, grace_s=grace_s)
        if not as_json:
            click.echo(f"{drained.server} in {drained.zone} leaves; it had {drained.in_flight} requests in flight")
        async with asyncio.timeout(settings.timeout_s):
            while epochs & await _epochs(client, server):  # noqa: ASYNC110 - what is waited for is far away
                await asyncio.sleep(_LOOK_EVERY_S)
    if as_json:
        print_message(drained)
    else:
        click.echo(f"{drained.server} has left")


async def _epochs(client: Client, server: str) -> set[str]:
    """The lives of the server that the router sees and that may still serve."""
    status = await client.status()
    return {
        each.endpoint.epoch
        for zone in status.zones
        for each in zone.endpoints
        if each.endpoint.server == server and each.catalog_state != router_pb2.CATALOG_STATE_MISSING
    }
