"""What a process's log file says at its end."""

import json
from pathlib import Path

# Enough for the last lines of a traceback; a log can be gigabytes.
TAIL_BYTES = 16 << 10


def last_lines(log: Path, count: int) -> list[str]:
    """The last lines that are not blank, oldest first; none if there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


def activity(log: Path) -> str:
    """What the process last said it does: the last line's message if it is one of our JSON lines, else the line."""
    lines = last_lines(log, 1)
    if not lines:
        return ""
    try:
        record = json.loads(lines[0])
    except ValueError:
        return lines[0]
    return str(record.get("message", "")) if isinstance(record, dict) else lines[0]
