from pathlib import Path

import pytest

from bench.routing import synthetic, trace
from bench.routing.speeds import Speeds
from bench.routing.workloads import OF_A_FILE, WORKLOADS, Setting

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("kind", synthetic.KINDS)
def test_a_kind_has_its_load_and_is_its_seeds(kind: str) -> None:
    made = synthetic.make(kind, 10.0, 120.0, seed=1)
    span_s = (made[-1].timestamp - made[0].timestamp) / 1e3
    assert len(made) / span_s == pytest.approx(10.0, rel=0.1)
    assert [each.timestamp for each in made] == sorted(each.timestamp for each in made)
    assert made == synthetic.make(kind, 10.0, 120.0, seed=1)
    assert made != synthetic.make(kind, 10.0, 120.0, seed=2)
    assert all(len(each.hash_ids) >= each.input_length // 512 for each in made)


@pytest.mark.parametrize("kind", synthetic.KINDS)
def test_a_kind_written_and_read_is_the_same_workload(kind: str, tmp_path: Path) -> None:
    made = synthetic.make(kind, 5.0, 30.0, seed=3)
    path = tmp_path / "made.jsonl"
    path.write_text("".join(each.line() for each in made))
    assert trace.records(path) == made
    workload = WORKLOADS[kind](Setting(Speeds(), 5.0, seed=3, seconds=30.0))
    assert trace.read(path) == workload.jobs


def test_reshuffled_conversations_are_whole_and_at_other_times(tmp_path: Path) -> None:
    made = synthetic.make("agents", 10.0, 60.0, seed=1)
    moved = synthetic.reshuffled(made, seed=1)
    assert sorted(each.hash_ids for each in moved) == sorted(each.hash_ids for each in made)
    assert sum(a.timestamp != b.timestamp for a, b in zip(made, moved, strict=True)) > 0.9 * len(made)
    path = tmp_path / "made.jsonl"
    path.write_text("".join(each.line() for each in made))
    workload = WORKLOADS["held-out"](Setting(Speeds(), 7.0, trace=path))
    span_s = workload.jobs[-1].arrival_s - workload.jobs[0].arrival_s
    assert len(workload.jobs) / span_s == pytest.approx(7.0, rel=0.01)


@pytest.mark.parametrize("name", OF_A_FILE)
def test_what_needs_a_file_says_so(name: str) -> None:
    with pytest.raises(ValueError, match="--trace"):
        WORKLOADS[name](Setting(Speeds(), 1.0))
