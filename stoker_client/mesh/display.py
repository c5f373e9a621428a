"""What a person sees while a mesh comes up: a table that lives on a terminal, lines elsewhere."""

import time
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from stoker_client.mesh.logfile import activity
from stoker_client.mesh.state import Kind, MeshState, Phase, ProcessState

MARKS = {
    Phase.UP: ("✓", "green"),
    Phase.RESTARTING: ("↻", "yellow"),
    Phase.FAILED: ("✗", "bold red"),
    Phase.STOPPING: ("…", "yellow"),
    Phase.STOPPED: ("-", "dim"),
}


class LiveTable:
    """A table that is drawn again as processes come up, with the last line of the log of those that have not."""

    def __init__(self, console: Console) -> None:
        self._state: MeshState | None = None
        self._spinner = Spinner("dots")
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8, transient=True)

    def show(self, state: MeshState) -> None:
        """Show this state at the next refresh."""
        self._state = state

    def start(self) -> None:
        """Begin to draw."""
        self._live.start()

    def stop(self) -> None:
        """End, and leave nothing on the screen."""
        self._live.stop()

    def _render(self) -> RenderableType:
        state = self._state
        if state is None:
            return self._spinner
        table = Table.grid(padding=(0, 2))
        for process in state.processes:
            mark: RenderableType = self._spinner
            if process.phase in MARKS:
                sign, style = MARKS[process.phase]
                mark = Text(sign, style=style)
            table.add_row(mark, process.name, Text(process.phase, style="dim"), Text(_doing(process), style="dim"))
        up = sum(process.phase is Phase.UP for process in state.processes)
        seconds = time.time() - state.started_at_s
        return Group(table, Text(f"{up} of {len(state.processes)} up after {seconds:.0f} s", style="bold"))


class Lines:
    """A line for each step a process makes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, tuple[Phase, str]] = {}

    def show(self, state: MeshState) -> None:
        """Print what has changed since the last state."""
        for process in state.processes:
            if self._shown.get(process.name) != _step(process):
                seconds = time.time() - state.started_at_s
                note = f": {process.note}" if process.note and process.phase is not Phase.FAILED else ""
                self._console.print(Text(f"{seconds:6.1f} s  {process.name} {process.phase}{note}"), soft_wrap=True)
        self.seen(state)

    def seen(self, state: MeshState) -> None:
        """Take this state as shown."""
        self._shown = {process.name: _step(process) for process in state.processes}


class Screen:
    """A display while the mesh comes up, then what a person needs to use it, then a line for each change.

    A process that was given up is shown at once and in full, whatever else is shown.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines = Lines(console)
        self._table = LiveTable(console) if console.is_terminal else None
        self._up = False
        self._given_up: set[str] = set()

    def show(self, state: MeshState) -> None:
        """Show this state."""
        for process in state.processes:
            if process.phase is Phase.FAILED and process.name not in self._given_up:
                self._given_up.add(process.name)
                self._console.print(Text(f"{process.name} {process.note}", style="bold red"), soft_wrap=True)
        if self._up or self._table is None:
            self._lines.show(state)
        else:
            self._table.show(state)
            self._lines.seen(state)
        if state.phase is Phase.UP and not self._up:
            self._up = True
            self._end_table()
            self._console.print(summary(state), soft_wrap=True)

    def __enter__(self) -> "Screen":
        if self._table is not None:
            self._table.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_table()

    def _end_table(self) -> None:
        if self._table is not None:
            self._table.stop()
            self._table = None


def summary(state: MeshState) -> Text:
    """Where the mesh is and what to try."""
    seconds = time.time() - state.started_at_s
    count = sum(process.phase is Phase.UP for process in state.processes)
    lines = [f"The mesh is up: {count} of {len(state.processes)} processes after {seconds:.1f} s."]
    for router in state.of_kind(Kind.ROUTER):
        consul = next(process for process in state.of_kind(Kind.CONSUL) if process.zone == router.zone)
        lines.append(f"  {router.zone}: router {router.address}, Consul http://{consul.address}/v1/catalog/services")
    lines.append('Try: stoker generate "The capital of France is" --max-tokens 16 --temperature 0')
    lines.append("     stoker status; stoker explain PROMPT; stoker down")
    return Text("\n".join(lines))


def _step(process: ProcessState) -> tuple[Phase, str]:
    return process.phase, process.note


def _doing(process: ProcessState) -> str:
    if process.phase is Phase.UP:
        return process.address
    line = process.note.splitlines()[0] if process.note else activity(Path(process.log))
    return line[:100]
