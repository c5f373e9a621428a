"""`stoker status`: what runs on this machine, and what a router sees of the whole mesh."""

import json
from dataclasses import asdict
from pathlib import Path

import click
from google.protobuf.descriptor import EnumDescriptor
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stoker.v1 import endpoint_pb2, router_pb2
from stoker_client.cli.printing import as_json as message_as_json
from stoker_client.cli.printing import console, table
from stoker_client.cli.session import client_settings, common_flags, connected, local_mesh, run, sentence
from stoker_client.config import ClientSettings
from stoker_client.errors import StokerError
from stoker_client.mesh.state import MeshState, Phase

# A prediction that is off by more makes for bad picks; docs/operations.md says what to look at.
RIGHT_WITHIN = 0.25
STYLES = {"alive": "green", "probing": "yellow", "ejected": "red", "passing": "green", "up": "green", "hot": "green"}


@click.command()
@click.option("--zone", default="", help="Only this zone.")
@common_flags
def status(zone: str, router: tuple[str, ...], timeout_s: float | None, as_json: bool) -> None:
    """Show zones, servers, models and residency, load, breakers and the catalog's age."""
    settings = client_settings(router, timeout_s)
    mesh = None if settings.router else local_mesh()
    run(_status(settings, zone, mesh, as_json=as_json))


async def _status(settings: ClientSettings, zone: str, mesh: MeshState | None, *, as_json: bool) -> None:
    seen: router_pb2.StatusResponse | None = None
    failed: StokerError | None = None
    async with connected(settings) as client:
        try:
            seen = await client.status(zone=zone)
        except StokerError as error:
            failed = error
    if as_json:
        found = {
            "mesh": None if mesh is None else asdict(mesh),
            "router": None if seen is None else json.loads(message_as_json(seen)),
            "error": None if failed is None else sentence(failed),
        }
        click.echo(json.dumps(found, indent=2))
    else:
        out = console()
        if mesh is not None:
            out.print(processes_table(mesh))
        if seen is not None:
            print_status(out, seen, zone)
    if failed is not None:
        raise failed


def processes_table(mesh: MeshState) -> Table:
    """The local mesh's processes as its supervisor sees them."""
    logs = Path(mesh.processes[0].log).parent
    title = (
        f"[bold]This machine[/]: the mesh is {styled(mesh.phase)}, engine {mesh.engine}, logs in {escape(str(logs))}"
    )
    troubled = any(process.phase is Phase.FAILED for process in mesh.processes)
    shown = table(title, ("process", "is", "address", "metrics"), ("pid", "restarts"), "why" if troubled else "")
    for process in mesh.processes:
        pid = str(process.identity.pid) if process.identity is not None else "-"
        at = (process.address, process.metrics_address or "-")
        # The note of what was given up goes on with the end of its log, which the supervisor's log has.
        why = (escape(process.note.partition(";")[0]),) if troubled else ()
        shown.add_row(process.name, styled(process.phase), *at, pid, str(process.restarts), *why)
    return shown


def print_status(out: Console, seen: router_pb2.StatusResponse, zone: str) -> None:
    """A router's view, zone by zone. `zone`: the only one asked for, or empty."""
    router = f"[bold]{escape(seen.router)}[/] in {escape(seen.zone)}, version {escape(seen.version)}"
    out.print(f"{router}, {seen.in_flight} in flight")
    if not seen.zones:
        out.print("no such zone, or its catalog was never read" if zone else "no zone's catalog was ever read")
    for found in seen.zones:
        age = f"catalog confirmed {found.catalog_age.ToMilliseconds() / 1000:.1f} s ago"
        if not found.HasField("catalog_age"):
            age = "catalog never read"
        error = f", [red]cannot be read now: {escape(found.catalog_error)}[/]" if found.catalog_error else ""
        figures = ("run", "wait", "KV", "load", "mem", "sent")
        shown = table(
            f"[bold]{escape(found.zone)}[/]: {age}{error}", ("server", "catalog", "breaker"), figures, "models"
        )
        for endpoint in found.endpoints:
            shown.add_row(*_endpoint_row(endpoint))
        out.print(shown)


def _endpoint_row(seen: router_pb2.EndpointStatus) -> tuple[str, ...]:
    load = seen.endpoint.load
    breaker = styled(word(router_pb2.Breaker.DESCRIPTOR, "BREAKER", seen.breaker))
    if seen.HasField("ejected_for"):
        breaker += f" for {seen.ejected_for.ToMilliseconds() / 1000:.0f} s"
    calibration = {each.model: each for each in seen.calibration}
    models = "\n".join(f"{_where(model)}{_predicted(calibration.get(model.name))}" for model in seen.endpoint.models)
    if seen.excluded_by:
        models += f"\n[yellow]not chosen: {escape(seen.excluded_by)}[/]"
    return (
        escape(seen.endpoint.server),
        styled(word(router_pb2.CatalogState.DESCRIPTOR, "CATALOG_STATE", seen.catalog_state)),
        breaker,
        str(load.running),
        str(load.waiting),
        f"{load.kv_usage:.0%}",
        f"{load.utilization:.0%}",
        f"{load.memory_usage:.0%}",
        str(seen.in_flight),
        models,
    )


def _predicted(calibration: router_pb2.Calibration | None) -> str:
    """How far the predicted time to first token was off there, of late: the median either way, and which way; and what
    is predicted now: what any takes, and how fast prompts are computed."""
    if calibration is None:
        return ""
    style = "dim" if calibration.error <= RIGHT_WITHIN else "yellow"
    off = f"first token off by {calibration.error:.0%} ({calibration.bias:+.0%}), of {calibration.requests}"
    if calibration.prefill_tokens_per_second:
        off += f"; {calibration.base_ms:.0f} ms and {calibration.prefill_tokens_per_second:,.0f} tokens/s"
    return f" [{style}]{off}[/]"


def _where(model: endpoint_pb2.Model) -> str:
    """A model and where it is; an adapter with its base."""
    of = f" of {escape(model.base)}" if model.base else ""
    return f"{escape(model.name)}{of} {styled(residency(model))}"


def residency(model: endpoint_pb2.Model) -> str:
    """Where a model is, in a word."""
    return word(endpoint_pb2.Residency.DESCRIPTOR, "RESIDENCY", model.residency)


def word(enum: EnumDescriptor, prefix: str, value: int) -> str:
    """An enum's value in lower case, without its prefix; its number if this version does not know it."""
    known = enum.values_by_number.get(value)
    return str(value) if known is None else known.name.removeprefix(f"{prefix}_").lower()


def styled(text: str) -> str:
    """The word in the colour that goes with it."""
    style = STYLES.get(text)
    return f"[{style}]{text}[/]" if style else text
