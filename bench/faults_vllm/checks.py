"""What must be true of a stream whatever became of its server, and how it compares with its controls. Pure."""

import json
from collections.abc import Callable, Sequence

from bench.faults_vllm.kinds import Asked
from bench.faults_vllm.stream import Came
from stoker.v1 import inference_pb2

# A half character at an output's end, and what a detokenizer makes of ids that are no text.
_HALF = "\N{REPLACEMENT CHARACTER}"
Decode = Callable[[Sequence[int]], str]


def wrong(asked: Asked, came: Came, decode: Decode) -> list[str]:
    """What is wrong with an output by itself: counts, text against ids, form, stop, end. `decode` makes text of ids."""
    if came.error:
        return [f"failed: {came.error}"]
    said: list[str] = []
    count, wanted = len(came.ids), asked.generation.sampling.max_tokens
    if came.usage_tokens != count:
        said.append(f"usage counts {came.usage_tokens} of {count} tokens")
    if sum(came.delivered) != count:
        said.append(f"the attempts delivered {sum(came.delivered)} of {count} tokens")
    decoded = decode(came.ids).replace(_HALF, "")
    text = came.text.replace(_HALF, "")
    stopped = came.finish == inference_pb2.FINISH_REASON_STOP
    stops = tuple(asked.generation.sampling.stop)
    if any(stop in came.text for stop in stops):
        said.append("a stop string is in the text")
    if stopped and stops:
        # The ids of the stop string were emitted; its text and what follows were not.
        if not decoded.startswith(text) or not decoded[len(text) :].startswith(stops):
            said.append("it stopped where there is no stop string, or lost text before it")
    elif decoded != text:
        said.append("the text is not that of the ids")
    if asked.persons:
        said += _form(came, asked.persons)
    elif not (stopped and stops) and (came.finish != inference_pb2.FINISH_REASON_LENGTH or count != wanted):
        said.append(f"it ended after {count} of {wanted} tokens")
    return said


def _form(came: Came, persons: int) -> list[str]:
    try:
        people = json.loads(came.text)["people"]
    except (ValueError, KeyError, TypeError):
        return ["it is not the JSON that was asked for"]
    good = isinstance(people, list) and len(people) == persons and all(_is_person(person) for person in people)
    return [] if good else ["its JSON has not the form that was asked for"]


def _is_person(person: object) -> bool:
    if not isinstance(person, dict) or person.keys() != {"name", "age", "city"}:
        return False
    words = person["name"], person["city"]
    return isinstance(person["age"], int) and all(isinstance(word, str) and len(word) <= 20 for word in words)


def same(one: Came, other: Came) -> bool:
    """Whether a client could tell them apart."""
    return (one.ids, one.text, one.finish) == (other.ids, other.text, other.finish)


def repeats(controls: Sequence[Came]) -> bool:
    """Whether a request gave the same every time without a fault: only then can other bytes be wrong."""
    return len(controls) > 1 and all(same(controls[0], each) for each in controls)


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The place of the first id that differs; None if there is none."""
    for place, (mine, yours) in enumerate(zip(one, other, strict=False)):
        if mine != yours:
            return place
    return None if len(one) == len(other) else min(len(one), len(other))
