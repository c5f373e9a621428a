import subprocess

from bench.commit import ROOT, commit


def test_it_is_the_commit_that_is_checked_out() -> None:
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    name, _, changes = commit().partition(" ")
    assert asked.stdout.startswith(name) if asked.returncode == 0 else name == "unknown"
    assert changes in ("", "and changes")
