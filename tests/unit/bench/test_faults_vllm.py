"""What the benchmark of faults on real vLLM calls wrong, and when it compares bytes."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from bench.faults_vllm import checks, kinds, table
from bench.faults_vllm.kinds import Asked
from bench.faults_vllm.stream import Came
from bench.faults_vllm.trials import CUT, KILL, NONE, Trial, order
from stoker.v1 import inference_pb2

LENGTH, STOP = inference_pb2.FINISH_REASON_LENGTH, inference_pb2.FINISH_REASON_STOP


def decode(ids: Sequence[int]) -> str:
    """Each id is a character."""
    return "".join(map(chr, ids))


def asked(kind: str, tokens: int = 5) -> Asked:
    (made,) = kinds.streams("model", (kind,), 1, tokens)
    return made


def came(text: str, finish: int = LENGTH, said: str | None = None) -> Came:
    """A stream of these characters that two servers delivered, of which the client saw `said`."""
    ids = [ord(character) for character in text]
    seen = text if said is None else said
    return Came(ids, seen, finish, usage_tokens=len(ids), delivered=[2, len(ids) - 2], modes=["restore"])


def test_a_good_stream_has_nothing_wrong() -> None:
    assert checks.wrong(asked("greedy"), came("abcde"), decode) == []


@pytest.mark.parametrize(
    "bad",
    [
        came("abcd"),
        came("abcdee"),
        came("abcde", said="abccde"),
        came("abcde", said="abde"),
        came("abcde", finish=STOP),
        replace(came("abcde"), usage_tokens=6),
        replace(came("abcde"), delivered=[2, 4]),
        replace(came("abcde"), error="UNAVAILABLE: gone"),
    ],
    ids=["short", "long", "text repeated", "text lost", "ended", "usage", "attempts", "failed"],
)
def test_what_is_lost_repeated_or_miscounted_is_wrong(bad: Came) -> None:
    assert checks.wrong(asked("greedy"), bad, decode)


def test_a_stop_string_ends_the_text_where_it_is() -> None:
    stopping = kinds.stopping(asked("stop string", 20), "one two three four five six")
    (stop, _) = stopping.generation.sampling.stop
    before = "one two three four fi"
    good = came(f"{before}{stop}", finish=STOP, said=before)
    assert checks.wrong(stopping, good, decode) == []
    assert checks.wrong(stopping, replace(good, text=before[:-1]), decode)
    assert checks.wrong(stopping, replace(good, text=f"{before}{stop}"), decode)
    assert checks.wrong(stopping, came(before[:8], finish=STOP), decode)


def test_json_must_have_its_form() -> None:
    wanted = asked("json schema", 60)
    assert wanted.persons == 2
    people = [{"name": "Ann", "age": 30, "city": "Rome"}] * 2
    good = came(json.dumps({"people": people}), finish=STOP)
    assert checks.wrong(wanted, good, decode) == []
    assert checks.wrong(wanted, came(json.dumps({"people": people[:1]}), finish=STOP), decode)
    assert checks.wrong(wanted, came(json.dumps({"people": people})[:-1], finish=LENGTH), decode)


def test_bytes_are_held_against_controls_only_where_these_repeat() -> None:
    mine = asked("greedy")
    trials = [
        Trial(NONE, came={mine.name: replace(came("abcde"), modes=[])}),
        Trial(NONE, came={mine.name: replace(came("abcde"), modes=[])}),
        Trial(CUT, came={mine.name: came("abxde")}),
    ]
    (*_, last) = table.rows(trials, [mine], decode)
    assert (last["control_repeats"], last["as_control"], last["differs_at"], last["wrong"]) == (True, False, 2, [])
    trials[1].came[mine.name].ids[0] += 1
    assert not table.rows(trials, [mine], decode)[-1]["control_repeats"]
    # One that failed or went on elsewhere is none, and one alone shows nothing.
    trials[1].came[mine.name] = came("abcde")
    assert not table.rows(trials, [mine], decode)[-1]["control_repeats"]
    assert "| cut | greedy | 1 | 0 | 1 | restore |" in table.report(table.rows(trials, [mine], decode))


def test_faults_are_spread_with_controls_before_among_and_after() -> None:
    faults = order(2, 0, 10, 3)
    assert faults[:3] == [NONE] * 3 and faults[-1] == NONE
    assert (faults.count(KILL), faults.count(CUT)) == (2, 10)
    assert NONE in faults[4:-1]


def test_no_two_streams_of_a_kind_ask_the_same() -> None:
    made = kinds.streams("model", kinds.KINDS, 64, 128)
    assert len({(each.kind, each.generation.SerializeToString()) for each in made}) == 64
    assert len({each.name for each in made}) == 64
    assert {each.kind for each in made} == set(kinds.KINDS)
