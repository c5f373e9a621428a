"""The scripts that bring the mesh to a GPU host: pieces go out and are put together, measurements are bounded.

They run here with archives of a few bytes and with programs that stand for the benchmarks.
"""

import os
import re
import subprocess
import tarfile
import time
import tomllib
from pathlib import Path

import psutil
import pytest

KIT = Path(__file__).resolve().parents[3] / "bench" / "gpu"
ARCHIVES = {"mesh": "bin/tool", "vllm": "vllm.py", "smollm2": "models/small/weights"}


def run(*command: str | Path, status: int = 0, **environment: str) -> str:
    done = subprocess.run(
        ["bash", *map(str, command)], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """Packed archives, split into pieces that are laid into a checkout."""
    out, repo = tmp_path / "out", tmp_path / "repo"
    out.mkdir()
    for name, file in ARCHIVES.items():
        made = tmp_path / name / file
        made.parent.mkdir(parents=True)
        made.write_bytes(os.urandom(3000))
        with tarfile.open(out / f"{name}.tar.xz", "w:xz") as archive:
            archive.add(tmp_path / name, ".")
    assert "piece piece.05" in run(KIT / "pack.sh", out, PIECE="2K")
    run(KIT / "lay.sh", out, repo)
    return repo


def unpack(repo: Path, number: int, status: int = 0) -> str:
    there = {"KIT": str(repo.parent / "kit"), "KIT_IN": str(repo.parent / "in")}
    return run(KIT / "unpack.sh", repo / ".gpu" / str(number), status=status, **there)


def test_pieces_become_the_archives_again_each_as_soon_as_it_is_whole(repo: Path) -> None:
    kit = repo.parent / "kit"
    assert "mesh waits" in unpack(repo, 1)
    assert "mesh is there" in unpack(repo, 2)
    assert not (kit / "site" / "vllm.py").exists()
    pieces = len(list((repo / ".gpu").iterdir()))
    said = [unpack(repo, number) for number in range(3, pieces + 1)]
    assert sum("is there" in each for each in said) == 2, "each is unpacked once"
    for name, file in ARCHIVES.items():
        there = kit / ("site" if name == "vllm" else ".") / file
        assert there.read_bytes() == (repo.parent / name / file).read_bytes()


def test_a_piece_that_came_damaged_is_told(repo: Path) -> None:
    piece = repo / ".gpu" / "1" / "piece.01"
    piece.write_bytes(piece.read_bytes()[:-1] + b"?")
    assert "piece.01 came damaged" in unpack(repo, 1, status=1)


def measured(tmp_path: Path, body: str, budget: int = 40) -> str:
    """What a script says that uses common.sh as the others do."""
    script = tmp_path / "measure.sh"
    script.write_text(f'source "{KIT}/common.sh"\n{body}\n')
    (tmp_path / "out").mkdir()
    return run(script, str(budget), OUT=str(tmp_path / "out"), KIT=str(tmp_path), STOP_S="2")


def test_a_measurement_ends_in_time_and_what_it_started_with_it(tmp_path: Path) -> None:
    stuck = 'bounded stuck 1 bash -c "setsid sleep 1234 & trap : INT; echo began; while true; do sleep 0.1; done"'
    began_s = time.monotonic()
    said = measured(tmp_path, f"{stuck}\nsay over")
    assert time.monotonic() - began_s < 15
    assert "over" in said and "status 137" in said
    assert (tmp_path / "out" / "stuck.log").read_text() == "began\n"
    assert not [each for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"] == ["sleep", "1234"]]


def test_what_no_time_is_left_for_is_left_out(tmp_path: Path) -> None:
    assert "late: left out" in measured(tmp_path, "bounded late 10 echo ran", budget=10)
    assert not (tmp_path / "out" / "late.log").exists()


def test_the_processes_logs_come_back_in_one_file(tmp_path: Path) -> None:
    measured(tmp_path, 'mkdir "$scratch/part"; echo said >"$scratch/part/server.log"')
    with tarfile.open(tmp_path / "out" / "logs-measure.tar.gz") as logs:
        assert logs.getnames() == ["./part/server.log"]


def test_whatever_stoker_depends_on_is_packed() -> None:
    project = tomllib.loads((KIT.parents[1] / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[^A-Za-z0-9-]", each, maxsplit=1)[0] for each in project["dependencies"]}
    packed = {line for line in (KIT / "requirements.txt").read_text().splitlines() if not line.startswith("#")}
    assert needed - packed == set()
