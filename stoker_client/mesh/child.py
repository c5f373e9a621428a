"""One life of one process of the mesh: in a session of its own, dying with this one, its output in a file."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from discovery import die_with_parent
from stoker_client.mesh.identity import Identity, identify


class Child:
    """A running process. It gets no signal from the terminal: only `stop` and `kill` end it, or this process's end."""

    def __init__(self, process: asyncio.subprocess.Process, identity: Identity | None) -> None:
        self._process = process
        self.identity = identity

    @classmethod
    async def start(cls, argv: Sequence[str], environ: Mapping[str, str], log: Path) -> "Child":
        """Start `argv`, its output appended to `log`. Raises OSError if Python itself cannot be started."""
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                die_with_parent.__file__,
                str(os.getpid()),
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environ,
                start_new_session=True,
            )
        return cls(process, identify(process.pid))

    async def wait(self) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        return await self._process.wait()

    async def stop(self, grace_s: float) -> int:
        """Ask it to end, and end it after `grace_s`; the exit code."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                return await self._process.wait()
        except TimeoutError:
            self.kill()
            return await self._process.wait()

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        # Its pid cannot mean another process before asyncio has waited for it, and then returncode is set.
        if self._process.returncode is None:
            self._process.send_signal(number)
