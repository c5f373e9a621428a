import json
from pathlib import Path

import pytest

from bench.routing import trace


def write(path: Path, *records: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def record(at_ms: int, prompt: int, ids: list[int]) -> dict[str, object]:
    return {"timestamp": at_ms, "input_length": prompt, "output_length": 5, "hash_ids": ids}


def test_whole_blocks_and_conversations(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.jsonl",
        record(0, 1100, [0, 1, 2]),
        record(1000, 1100, [0, 9, 8]),
        record(2000, 1600, [0, 1, 5, 6]),
        record(3000, 600, [0, 7]),
    )
    first, other, second, short = trace.read(path, speedup=2.0)
    assert [len(job.chain) for job in (first, other, second, short)] == [2, 2, 3, 1]
    assert second.chain[:2] == first.chain
    assert other.chain[0] == first.chain[0] and other.chain[1] != first.chain[1]
    assert first.session == second.session
    assert len({first.session, other.session, short.session}) == 3
    assert second.arrival_s == pytest.approx(1.0)


def test_equal_ids_behind_different_ones_are_other_blocks(tmp_path: Path) -> None:
    one, two = trace.read(write(tmp_path / "t.jsonl", record(0, 1024, [1, 3]), record(0, 1024, [2, 3])))
    assert one.chain[1] != two.chain[1]


def test_what_is_no_trace_says_where(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", record(0, 1024, [1, 3]), {"timestamp": 1})
    with pytest.raises(ValueError, match="line 2"):
        trace.read(path)
