"""`stoker generate`: the answer as it comes, and at the end one line about who gave it."""

import sys
import time
from contextlib import aclosing

import click

from stoker.v1 import inference_pb2
from stoker_client.cli.printing import note, print_message, printable
from stoker_client.cli.session import client_settings, common_flags, connected, model_of, run
from stoker_client.config import ClientSettings
from stoker_client.options import Options, Turn
from stoker_common.fold import Fold


@click.command()
@click.argument("prompt")
@click.option("--model", help="The model, NAME or NAME@VERSION. Default: the only one there is.")
@click.option("--chat", is_flag=True, help="Take the prompt as a user's message in a conversation.")
@click.option("--system", help="With --chat: the system's message before it.")
@click.option("--max-tokens", type=int, help="The most tokens to generate. Default: what the model's context leaves.")
@click.option("--temperature", type=float, help="Randomness, 0 (greedy) to 2. Default: 1.")
@click.option("--top-p", type=float, help="Share of probability kept, above 0 to 1.")
@click.option("--top-k", type=int, help="How many of the likeliest tokens are kept; 0: all.")
@click.option("--seed", type=int, help="Seed of this request's random generator.")
@click.option("--stop", multiple=True, help="A string that ends the output; may be given several times.")
@click.option("--session", help="The conversation this belongs to: it goes where its cache is.")
@click.option(
    "--mode",
    type=click.Choice(["auto", "direct", "relay"]),
    help="Through the router, from the server that it names, or from there where that works. Default: relay.",
)
@common_flags
def generate(
    prompt: str,
    model: str | None,
    chat: bool,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    seed: int | None,
    stop: tuple[str, ...],
    session: str | None,
    mode: str | None,
    router: tuple[str, ...],
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Ask a model and print its answer as it comes. PROMPT `-` reads it from standard input."""
    if system is not None and not chat:
        raise click.UsageError("--system goes with --chat")
    options: Options = {}
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    if temperature is not None:
        options["temperature"] = temperature
    if top_p is not None:
        options["top_p"] = top_p
    if top_k is not None:
        options["top_k"] = top_k
    if seed is not None:
        options["seed"] = seed
    if stop:
        options["stop"] = stop
    if session is not None:
        options["session"] = session
    text = sys.stdin.read() if prompt == "-" else prompt
    settings = client_settings(router, timeout_s, model, mode)
    run(_generate(settings, text, system, options, chat=chat, as_json=as_json))


async def _generate(
    settings: ClientSettings, prompt: str, system: str | None, options: Options, *, chat: bool, as_json: bool
) -> None:
    fold, began_s, first_s = Fold(), 0.0, 0.0
    turns: list[Turn] = [{"role": "system", "content": system}] if system is not None else []
    turns.append({"role": "user", "content": prompt})
    async with connected(settings) as client:
        model = await model_of(client, settings)
        began_s = time.monotonic()
        stream = client.stream(None if chat else prompt, messages=turns if chat else None, model=model, **options)
        async with aclosing(stream):
            async for chunk in stream:
                fold.add(chunk.response)
                if chunk.deltas and not first_s:
                    first_s = time.monotonic()
                if chunk.progress is not None and not as_json:
                    note(f"{chunk.progress.server}: {chunk.progress.activity} ({chunk.progress.fraction:.0%})")
                if chunk.text and not as_json:
                    sys.stdout.write(printable(chunk.text))
                    sys.stdout.flush()
    if as_json:
        print_message(fold.response())
    else:
        click.echo()
        note(summary(fold.response(), (first_s - began_s) * 1000))


def summary(answer: inference_pb2.GenerateResponse, ttft_ms: float) -> str:
    """One line: server, zone, tokens, time to first token as seen here, attempts, why picked."""
    started, finished = answer.started, answer.finished
    usage = finished.usage
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    parts = [
        f"{started.server} in {started.zone}",
        f"{usage.prompt_tokens} tokens in{cached}, {usage.completion_tokens} out",
        f"first after {ttft_ms:.0f} ms",
    ]
    if finished.attempts:
        failed = "; ".join(f"{attempt.server}: {attempt.reason}" for attempt in finished.attempts if attempt.code)
        parts.append(
            f"{len(finished.attempts)} attempt{'s' * (len(finished.attempts) > 1)}" + f" ({failed})" * bool(failed)
        )
    if started.HasField("pick"):
        parts.append(f"picked for {started.pick.reason}")
    return " · ".join(parts)
