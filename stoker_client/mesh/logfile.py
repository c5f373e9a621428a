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
    """What the process last said it does: the message of one of our JSON lines, or another line that is not indented
    (those are code and tracebacks) and has a word."""
    lines = [line for line in last_lines(log, 20) if not line[0].isspace() and any(map(str.isalnum, line))]
    if not lines:
        return ""
    try:
        record = json.loads(lines[-1])
    except ValueError:
        return lines[-1]
    return str(record.get("message", "")) if isinstance(record, dict) else lines[-1]
