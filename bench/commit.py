"""Which code a measurement is of."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commit() -> str:
    """The commit checked out, in short; "and changes" if Python files differ from it. "unknown" without git."""
    name = _git("rev-parse", "--short", "HEAD")
    if not name:
        return "unknown"
    return f"{name} and changes" if _git("status", "--porcelain", "--", "*.py") else name


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
