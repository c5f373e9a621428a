"""The requests whose streams are broken: eight kinds, each of which loses something else when resumed wrongly."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from stoker.v1 import generation_pb2

Sampling = generation_pb2.Sampling

KINDS = ("greedy", "seeded", "seeded top-p", "penalties", "json schema", "stop string", "chinese", "emoji")
# Unseeded, so it may go on by prefill; of one candidate, so its control repeats all the same.
PLAIN = "plain"
_LIGHTHOUSE = "Write a short story about a lighthouse keeper."
_PROMPTS = {
    "json schema": "Describe some people as JSON, each with name, age and city.",
    "chinese": "请用中文写一个关于海的短故事。",
    "emoji": "Answer only with emoji: 🌊🐟🚢 ...",
}
_SAMPLING = {
    "greedy": Sampling(temperature=0),
    "seeded": Sampling(temperature=0.9, seed=42),
    "seeded top-p": Sampling(temperature=0.8, top_p=0.9, top_k=40, seed=7),
    "penalties": Sampling(temperature=0, frequency_penalty=1.0, presence_penalty=0.5, repetition_penalty=1.2),
    "json schema": Sampling(temperature=0),
    "stop string": Sampling(temperature=0),
    "chinese": Sampling(temperature=0.7, seed=3),
    "emoji": Sampling(temperature=0.7, seed=5),
    PLAIN: Sampling(temperature=0.7, top_k=1),
}
# A person in JSON takes about so many tokens.
_PERSON_TOKENS = 30


@dataclass(frozen=True)
class Asked:
    """One stream to be: its name, its kind, what is asked for."""

    name: str
    kind: str
    generation: generation_pb2.Generation
    persons: int = 0


def streams(model: str, kinds: Sequence[str], count: int, tokens: int) -> list[Asked]:
    """So many streams, the kinds in turn, no two of a kind with the same prompt. `stop string` has none yet."""
    made: list[Asked] = []
    for place, kind in zip(range(count), itertools.cycle(kinds), strict=False):
        number = place // len(kinds)
        generation = _generation(model, kind, number, tokens)
        persons = 0
        if kind == "json schema":
            persons = max(1, tokens // _PERSON_TOKENS)
            generation.structured_output.json_schema = json.dumps(schema(persons))
            # It ends by itself; cut off, it would be no JSON.
            generation.sampling.max_tokens = 3 * tokens
            generation.sampling.ignore_eos = False
        made.append(Asked(f"{kind} {number}", kind, generation, persons))
    return made


def schema(persons: int) -> dict[str, object]:
    """A form of so many persons. Bounded, or a small model fills a string to the last token."""
    person = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 1, "maximum": 99},
            "city": {"type": "string", "maxLength": 20},
        },
        "required": ["name", "age", "city"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"people": {"type": "array", "items": person, "minItems": persons, "maxItems": persons}},
        "required": ["people"],
        "additionalProperties": False,
    }


def stopping(asked: Asked, text: str) -> Asked:
    """The request with a stop string in it: eight characters of `text`, what it says unstopped, from four fifths on."""
    generation = generation_pb2.Generation()
    generation.CopyFrom(asked.generation)
    at = len(text) * 4 // 5
    generation.sampling.stop[:] = [text[at : at + 8], "####"]
    return Asked(asked.name, asked.kind, generation, asked.persons)


def _generation(model: str, kind: str, number: int, tokens: int) -> generation_pb2.Generation:
    prompt = _PROMPTS.get(kind, _LIGHTHOUSE)
    said = generation_pb2.ContentPart(text=f"{prompt} ({number})" if number else prompt)
    sampling = Sampling(max_tokens=tokens, ignore_eos=True)
    sampling.MergeFrom(_SAMPLING[kind])
    return generation_pb2.Generation(
        model=model,
        chat=generation_pb2.Chat(messages=[generation_pb2.ChatMessage(role="user", content=[said])]),
        sampling=sampling,
    )
