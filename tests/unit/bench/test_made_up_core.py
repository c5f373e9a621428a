"""bench/throughput's made-up engine core: what its steps give to whom."""

import pytest

from bench.throughput.made_up import Made, Sequences

pytestmark = pytest.mark.unit


def test_each_gets_its_tokens_one_a_step_and_no_more() -> None:
    sequences = Sequences(1000)
    assert not sequences and sequences.step() == []
    sequences.ask("a", 64, 3, 1.5)
    first = sequences.step()
    sequences.ask("b", 8, 1, 2.5)
    steps: list[list[Made]] = [first]
    while sequences:
        steps.append(sequences.step())
    assert [[each.request_id for each in step] for step in steps] == [["a"], ["a", "b"], ["a"]]
    assert [each.last for step in steps for each in step] == [False, False, True, True]
    assert [each.new for step in steps for each in step] == [(64, 1.5), None, (8, 2.5), None]
    assert all(125 <= each.token_ids[0] < 875 and len(each.token_ids) == 1 for step in steps for each in step)


def test_what_is_aborted_gets_nothing_more() -> None:
    sequences = Sequences(1000)
    for request_id in ("a", "b"):
        sequences.ask(request_id, 8, 5, 0.0)
    sequences.ask("a", 0, 0, 0.0)
    sequences.ask("unknown", 0, 0, 0.0)
    assert [each.request_id for each in sequences.step()] == ["b"]
