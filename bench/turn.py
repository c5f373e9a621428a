"""Taking turns with other benchmarks on one machine."""

import asyncio
import fcntl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


@asynccontextmanager
async def turn(lock: Path | None) -> AsyncIterator[None]:
    """Have the machine to oneself among the runs that name this lock file; at once if None is named."""
    if lock is None:
        yield
        return
    with lock.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(0.02)
        yield
