"""Writes docs/resume.md from stoker_common/resuming.py, so that it says what the programs do. `make docs`."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from stoker.v1 import generation_pb2
from stoker.v1.generation_pb2 import Generation, Sampling
from stoker_common.not_yet import check_implemented
from stoker_common.refusal import Refusal
from stoker_common.resuming import MODES, Mode, fitting

PAGE = Path(__file__).resolve().parents[2] / "docs" / "resume.md"

HEAD = """\
# Which requests go on elsewhere, and how

<!-- Written by `make docs` from stoker_common/resuming.py; a test fails where it is not what the code does. -->

A stream whose server dies goes on on another one by the first of these modes that the server offers (`resume_modes` in
`stoker status --json`): **restore** takes the emitted ids as the engine's own output, **prefill** as part of the
prompt, **replay** starts over and forces them. With `EXACT` the server must be of the same numerics class as well.
Where no server has a mode of the row, the stream ends with UNAVAILABLE, NOT_RESUMABLE. With `FAIL` it always ends:
UNAVAILABLE, SERVER_FAILED or SERVER_LOST. A replay longer than 10 s is not begun.

The rows hold where restore keeps every byte, as on GPUs. A processor in bf16 rounds a prefill otherwise than decoding:
such a server leaves restore out of its `exact_modes` ([ADR 26](adr/0026-resume-modes.md)). There replay comes before
restore wherever asking twice should give the same (a seed, temperature 0, penalties, a grammar); `EXACT` means replay.

| request | `RESUME` | `EXACT` | what is kept, and why |
| --- | --- | --- | --- |
"""

TAIL = """
Requests may combine rows: then the modes that are in all of them remain. Before its first chunk, any request is simply
sent elsewhere. The last part says which mode was used and how exact the answer is (`Finished.attempts`,
`Finished.exactness`).
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request: the fields that make it, an example, what becomes of it."""

    name: str
    fields: tuple[str, ...]
    example: Callable[[], Generation]
    kept: str


def _sampling(**fields: object) -> Callable[[], Generation]:
    return lambda: Generation(sampling=Sampling(**fields))  # type: ignore[arg-type]


def _structured(**fields: object) -> Callable[[], Generation]:
    return lambda: Generation(structured_output=generation_pb2.StructuredOutput(**fields))  # type: ignore[arg-type]


def _chat() -> Generation:
    return Generation(
        chat=generation_pb2.Chat(
            messages=[generation_pb2.ChatMessage(role="user")], tools=[generation_pb2.Tool(name="clock")]
        )
    )


KINDS = (
    Kind(
        "text, token ids",
        ("text", "token_ids"),
        lambda: Generation(text="x"),
        "the prompt's ids, as the first server made them",
    ),
    Kind("chat, tools", ("chat",), _chat, "the same: the template is not rendered again"),
    Kind(
        "temperature, top_p, top_k, min_p",
        ("temperature", "top_p", "top_k", "min_p"),
        _sampling(temperature=0.8, top_p=0.9, top_k=40, min_p=0.1),
        "a valid continuation; without a seed no other is defined",
    ),
    Kind("seed", ("seed",), _sampling(seed=1), "the generator's state, which a prompt does not have"),
    Kind(
        "presence_penalty, frequency_penalty, repetition_penalty",
        ("presence_penalty", "frequency_penalty", "repetition_penalty"),
        _sampling(presence_penalty=1.0),
        "counts over output tokens",
    ),
    Kind("logit_bias", ("logit_bias",), _sampling(logit_bias={1: 1.0}), "the same at every token"),
    Kind("allowed_token_ids", ("allowed_token_ids",), _sampling(allowed_token_ids=[1]), "the same at every token"),
    Kind("bad_words", ("bad_words",), _sampling(bad_words=["x"]), "the beginning of a bad word may be in the output"),
    Kind("max_tokens", ("max_tokens",), _sampling(max_tokens=9), "counted over what was emitted"),
    Kind("min_tokens", ("min_tokens",), _sampling(min_tokens=9), "counted over what was emitted"),
    Kind(
        "stop, include_stop_str_in_output",
        ("stop", "include_stop_str_in_output"),
        _sampling(stop=["x"]),
        "text that is held back because a stop string may begin, also across the seam",
    ),
    Kind(
        "stop_token_ids, ignore_eos",
        ("stop_token_ids", "ignore_eos"),
        _sampling(stop_token_ids=[1], ignore_eos=True),
        "the same at every token",
    ),
    Kind(
        "n > 1",
        ("n",),
        _sampling(n=3),
        "each output by itself, by its index; those that had finished are not run again",
    ),
    Kind(
        "logprobs, logprob_token_ids",
        ("logprobs", "logprob_token_ids"),
        _sampling(logprobs=5),
        "those of new tokens come from the new server; none comes twice",
    ),
    Kind(
        "prompt_logprobs",
        ("prompt_logprobs", "prompt_logprob_start", "prompt_logprob_token_ids"),
        _sampling(prompt_logprobs=1),
        "sent once, with the first part",
    ),
    Kind(
        "thinking_token_budget",
        ("thinking_token_budget",),
        _sampling(thinking_token_budget=9),
        "counted over output tokens",
    ),
    Kind(
        "repetition_detection",
        ("repetition_detection",),
        _sampling(repetition_detection=generation_pb2.RepetitionDetection(max_pattern_size=4)),
        "looks back over output tokens",
    ),
    Kind(
        "truncate_prompt_tokens",
        ("truncate_prompt_tokens",),
        _sampling(truncate_prompt_tokens=9),
        "done once, by the first server",
    ),
    Kind(
        "skip_special_tokens, spaces_between_special_tokens, detokenize, stream_interval",
        ("skip_special_tokens", "spaces_between_special_tokens", "detokenize", "stream_interval"),
        _sampling(skip_special_tokens=False),
        "text goes on at the byte, in the middle of a character too",
    ),
    Kind(
        "skip_reading_prefix_cache, cache_salt",
        ("skip_reading_prefix_cache", "cache_salt"),
        lambda: Generation(cache_salt="s"),
        "goes along",
    ),
    Kind("watermarking", ("watermarking",), _sampling(watermarking=True), "goes along"),
    Kind(
        "structured output: JSON schema or object, regex, choice, grammar, structural tag",
        ("structured_output",),
        _structured(regex="x"),
        "the grammar's state, which covers output tokens only",
    ),
    Kind("session, priority", ("session", "priority"), lambda: Generation(priority=1), "goes along"),
    Kind(
        "lora_adapter",
        ("lora_adapter",),
        lambda: Generation(lora_adapter="x"),
        "goes on under the adapter, on a server that lists it, which loads it first where it has to",
    ),
    Kind("tenant", ("tenant",), lambda: Generation(tenant=generation_pb2.Tenant()), ""),
)

_NAMES = {mode: name for name, mode in MODES.items()}


def page() -> str:
    """The page as it should be."""
    return HEAD + "".join(f"{_row(kind)}\n" for kind in KINDS) + TAIL


def _row(kind: Kind) -> str:
    exact = kind.example()
    try:
        check_implemented(exact)
    except Refusal as refusal:
        return f"| {kind.name} | refused | refused | {refusal.code.name} before anything runs |"
    exact.on_server_failure = generation_pb2.ON_SERVER_FAILURE_EXACT
    return f"| {kind.name} | {_modes(fitting(kind.example()))} | {_modes(fitting(exact))} | {kind.kept} |"


def _modes(modes: Iterable[Mode]) -> str:
    return ", ".join(_NAMES[mode] for mode in modes)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
