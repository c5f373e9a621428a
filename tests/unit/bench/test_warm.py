"""What the benchmark of the warm path asks, and what it makes of the answers."""

from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import WordLevel

from bench.warm import figures
from bench.warm.figures import Window
from bench.warm.load import Row, told
from bench.warm.sessions import Conversation, Say, Shape, Words, script
from stoker.v1 import inference_pb2

SHAPE = Shape(turns=3, first_tokens=100, turn_tokens=20, answer_tokens=10)
WORDS = range(1000)


def lengths(turns: Sequence[Say]) -> list[tuple[int, int]]:
    return [(len(turn.ids), turn.answer_tokens) for turn in turns]


def test_every_policy_gets_the_same_lengths_and_words_of_its_own() -> None:
    one, other = (script(SHAPE, WORDS, 1, "round-0", 7, policy) for policy in ("stoker", "round-robin"))
    assert lengths(one) == lengths(other)
    assert one[0].ids != other[0].ids
    assert one == script(SHAPE, WORDS, 1, "round-0", 7, "stoker")


@pytest.mark.parametrize(("seed", "at", "number"), [(2, "round-0", 7), (1, "round-1", 7), (1, "round-0", 8)])
def test_other_seeds_rounds_and_sessions_differ(seed: int, at: str, number: int) -> None:
    assert lengths(script(SHAPE, WORDS, seed, at, number, "p")) != lengths(script(SHAPE, WORDS, 1, "round-0", 7, "p"))


def test_lengths_are_about_what_was_asked() -> None:
    turns = [turn for number in range(200) for turn in script(SHAPE, WORDS, 1, "r", number, "p")]
    firsts = [len(turn.ids) for turn in turns[::3]]
    assert sum(firsts) / len(firsts) == pytest.approx(100, rel=0.1)
    assert min(firsts) >= 50 and max(firsts) <= 150


def words() -> Words:
    vocabulary = {f"Ġw{number:03}".replace("0", "a").replace("1", "b"): number for number in range(200)} | {"x": 200}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="x"))
    tokenizer.decoder = ByteLevel()
    return Words(tokenizer)


def test_a_conversation_of_ids_goes_on_with_the_answers_ids() -> None:
    conversation = Conversation(words(), chat=False)
    conversation.say([1, 2])
    conversation.heard([9], " nine")
    conversation.say([3])
    assert (conversation.token_ids, conversation.messages) == ([1, 2, 9, 3], None)


def test_a_chat_goes_on_with_the_answers_text() -> None:
    known = words()
    conversation = Conversation(known, chat=True)
    conversation.say(known.ids[:2])
    conversation.heard([9], " nine")
    assert conversation.token_ids is None
    assert conversation.messages == [
        {"role": "user", "content": known.text(known.ids[:2])},
        {"role": "assistant", "content": " nine"},
    ]
    assert known.text(known.ids[:2]).strip()


def finished(attempts: int = 1) -> inference_pb2.Finished:
    last = inference_pb2.Finished()
    last.usage.prompt_tokens, last.usage.cached_tokens = 100, 60
    for number in range(attempts):
        attempt = last.attempts.add(server=f"s{number}")
        attempt.pick.first_token_ms = 130
        expected = attempt.pick.first_token
        expected.queue_ms, expected.prefill_ms, expected.rest_ms = 85, 40, 5
        attempt.first_token.FromMilliseconds(200)
    last.timings.queue.FromMilliseconds(50)
    last.timings.prefill.FromMilliseconds(120)
    last.timings.load.FromMilliseconds(1)
    return last


def test_what_was_predicted_and_what_came_is_told_apart_by_term() -> None:
    row = told(finished())
    assert (row["predicted_ms"], row["actual_ms"]) == (130, 200)
    assert row["terms"] == {"ready": [0, 1], "queue": [85, 50], "prefill": [40, 120], "rest": [5, 29]}


def test_a_request_that_was_tried_twice_says_nothing_of_predictions() -> None:
    assert "terms" not in told(finished(attempts=2))


def row(session: str = "s", turn: int = 0, server: str = "a", **changes: object) -> Row:
    made: Row = {
        "session": session,
        "turn": turn,
        "outcome": "ok",
        "ttft_ms": 100.0,
        "itl_ms": 5.0,
        "servers": [server],
    }
    made |= {"prompt_tokens": 100, "cached_tokens": 50, "predicted_ms": 80.0, "actual_ms": 100.0}
    return made | {"terms": {term: [8.0, 10.0] for term in figures.TERMS}} | changes


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def shown(table: str, *where: str) -> dict[str, str]:
    head, _, *lines = cells(table)
    (line,) = [line for line in lines if line[: len(where)] == list(where)]
    return dict(zip(head, line, strict=True))


def test_policies_stand_side_by_side_over_all_their_windows() -> None:
    rows = [row(), row(turn=1, server="b", predicted_ms=150.0), row("t", outcome="failed", error="gone")]
    windows = [Window("stoker", "round-0", 2.0, 40, rows), Window("stoker", "round-1", 2.0, 40, [row("u")])]
    line = shown(figures.policies(windows), "stoker")
    assert (line["requests"], line["failed"], line["moved"]) == ("3", "1", "1")
    assert (line["requests/s"], line["tokens/s"], line["cached"]) == ("0.75", "20", "50.0%")
    assert line["predicted TTFT off by, median"] == "20.0%"
    assert (line["bias, median"], line["within 25%"]) == ("-20.0%", "67%")


def test_what_was_cut_off_counts_for_times_and_not_as_a_request() -> None:
    cut = {"session": "s", "turn": 1, "outcome": "cut", "ttft_ms": 900.0}
    line = shown(figures.policies([Window("stoker", "round-0", 1.0, 9, [row(), cut])]), "stoker")
    assert line["requests"] == "1"
    assert line["TTFT p50 / p90 / p99 ms"] == "900 / 900 / 900"


def test_terms_tell_predicted_actual_and_how_far_off() -> None:
    line = shown(figures.terms([Window("stoker", "round-0", 1.0, 9, [row()])]), "stoker", "queue")
    assert (line["predicted, median ms"], line["actual, median ms"], line["off, median ms"]) == ("8.0", "10.0", "2.0")


def test_nothing_measured_makes_no_table() -> None:
    assert figures.moves([]) == figures.terms([]) == figures.policies([]) == ""
    empty = Window("stoker", "round-0", 1.0, 0, [])
    assert shown(figures.policies([empty]), "stoker")["requests"] == "0"


def test_moves_are_told_by_what_was_done_and_what_was_refused_beside() -> None:
    steps: list[Row] = [
        {"step": "wake", "model": "m", "seconds": 0.5},
        {"step": "wake", "model": "m", "seconds": 0.7},
        {"step": "wake", "model": "m", "seconds": 0.1, "error": "UNAVAILABLE: no"},
    ]
    line = shown(figures.moves(steps), "wake", "m")
    assert (line["times"], line["s, in turn"], line["failed"]) == ("3", "0.500, 0.700", "UNAVAILABLE: no")
