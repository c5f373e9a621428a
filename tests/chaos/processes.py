"""Real processes: started in sessions of their own, signalled by pid, gone when the harness is."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from discovery import die_with_parent
from tests.chaos.places import Place

ROOT = Path(__file__).parents[2]


@dataclass(slots=True)
class Process:
    """One process of the mesh, with as many lives as a trial gives it."""

    name: str
    kind: str
    zone: str
    place: Place
    argv: Sequence[str]
    log: Path
    host: str = ""
    port: int = 0
    metrics_port: int = 0
    pass_fds: tuple[int, ...] = ()
    # Where others reach it, if not at its address.
    front: str = ""
    environ: dict[str, str] = field(default_factory=dict)
    # Where its present life begins in the log, in bytes.
    _log_at: int = field(default=0, repr=False)
    _popen: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """host:port."""
        return f"{self.host}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether it is there, stopped or not."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def pid(self) -> int:
        """Its process id. Raises RuntimeError if it does not run."""
        if self._popen is None or self._popen.poll() is not None:
            raise RuntimeError(f"{self.name} does not run")
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs."""
        return None if self._popen is None else self._popen.poll()

    def said(self) -> str:
        """What it has logged in its present life; empty before the first."""
        return self.log.read_bytes()[self._log_at :].decode(errors="replace") if self.log.exists() else ""

    def start(self) -> None:
        """Start it, if it does not run."""
        if not self.running:
            self.place.run(self._start)

    def send(self, number: signal.Signals) -> None:
        """Signal it, if it runs."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait(10)

    def wait(self, within_s: float) -> int:
        """Wait for its end; returns its exit code. Raises subprocess.TimeoutExpired."""
        if self._popen is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._popen.wait(within_s)

    def _start(self) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("STOKER_")}
        # Byte code that is not kept costs a second at every start.
        environ["PYTHONDONTWRITEBYTECODE"] = ""
        environ |= self.environ
        launcher = [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())]
        with self.log.open("ab") as output:
            self._log_at = output.tell()
            self._popen = subprocess.Popen(
                [*launcher, *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=self.pass_fds,
                cwd=ROOT,
                env=environ,
            )
