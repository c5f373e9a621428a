"""`stoker explain`: what a request would cost on each server, term by term, and why some cannot be chosen."""

import click
from rich.markup import escape
from rich.table import Table

from stoker.v1 import pick_pb2, router_pb2
from stoker_client.cli.printing import console, print_message, table
from stoker_client.cli.session import client_settings, common_flags, connected, model_of, run
from stoker_client.config import ClientSettings
from stoker_client.options import Options, Turn

# Always shown; other terms where they count for any server.
USUAL = ("ready", "queue", "prefill", "decode", "zone")


@click.command()
@click.argument("prompt")
@click.option("--model", help="The model, NAME or NAME@VERSION. Default: the only one there is.")
@click.option("--chat", is_flag=True, help="Take the prompt as a user's message in a conversation.")
@click.option("--max-tokens", type=int, help="The most tokens to generate.")
@click.option("--session", help="The conversation this belongs to.")
@common_flags
def explain(
    prompt: str,
    model: str | None,
    chat: bool,
    max_tokens: int | None,
    session: str | None,
    router: tuple[str, ...],
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Price a request on every server, in ms, and send it nowhere."""
    options: Options = {}
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    if session is not None:
        options["session"] = session
    run(_explain(client_settings(router, timeout_s, model), prompt, options, chat=chat, as_json=as_json))


async def _explain(settings: ClientSettings, prompt: str, options: Options, *, chat: bool, as_json: bool) -> None:
    turns: list[Turn] = [{"role": "user", "content": prompt}]
    async with connected(settings) as client:
        priced = await client.explain(
            None if chat else prompt,
            messages=turns if chat else None,
            model=await model_of(client, settings),
            **options,
        )
    if as_json:
        print_message(priced)
    else:
        console().print(costs_table(priced))


def costs_table(priced: router_pb2.ExplainResponse) -> Table:
    """Every server, cheapest first, its cost term by term in ms; the excluded with their reason."""
    chosen = f"[bold]{escape(priced.chosen)}[/] would be chosen" if priced.chosen else "[red]no server can be chosen[/]"
    tokens = f"{priced.prompt_tokens} tokens in, {priced.expected_output_tokens} out expected"
    excluded = any(candidate.excluded_by for candidate in priced.candidates)
    last = "excluded by" if excluded else ""
    terms = (*_terms(priced), "total")
    columns = (*terms, "first token", "cached")
    shown_terms = table(f"{chosen}; {tokens}; costs in ms", ("server", "zone"), columns, last)
    for candidate in priced.candidates:
        style = "bold green" if candidate.server == priced.chosen else "dim" if candidate.excluded_by else ""
        shown = ["-"] * (len(terms) + 1)
        if candidate.HasField("cost"):
            shown = [f"{getattr(candidate.cost, f'{term}_ms'):.2f}" for term in terms]
            shown.append(f"{_total_ms(candidate.first_token):.2f}")
        cached = str(candidate.cached_tokens)
        why = (escape(candidate.excluded_by),) if excluded else ()
        shown_terms.add_row(escape(candidate.server), escape(candidate.zone), *shown, cached, *why, style=style)
    return shown_terms


def _total_ms(of: pick_pb2.FirstToken) -> float:
    """When the first token is expected: what is learned, beside the cost that decides."""
    return of.ready_ms + of.queue_ms + of.prefill_ms + of.rest_ms


def _terms(priced: router_pb2.ExplainResponse) -> list[str]:
    """The terms to show, so that they sum up to the total."""
    known = [field.removesuffix("_ms") for field in pick_pb2.Cost.DESCRIPTOR.fields_by_name if field != "total_ms"]
    counting = {term for term in known for each in priced.candidates if getattr(each.cost, f"{term}_ms")}
    return [term for term in known if term in USUAL or term in counting]
