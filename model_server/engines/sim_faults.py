"""Faults to inject into a simulated engine, from the same process or, through a JSON file, from another."""

import logging
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_server.engine import EngineError

_log = logging.getLogger(__name__)


class InjectedError(EngineError):
    """A request that failed because `error_rate` said so."""

    retryable = True


class FaultSet(BaseModel):
    """The faults in force. `dead` and `device_lost` are for good: an engine does not come back from them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dead: bool = Field(default=False, description="The engine dies: all streams fail, and check() raises.")
    device_lost: bool = Field(default=False, description="The same, by DeviceLost.")
    stall: bool = Field(default=False, description="Steps stop. check() finds nothing wrong.")
    slow_factor: float = Field(default=1.0, gt=0, description="Steps take this many times as long.")
    error_rate: float = Field(default=0.0, ge=0, le=1, description="Share of new requests that fail, by InjectedError.")


class Faults:
    """The faults in force, and who is told when they change."""

    def __init__(self, initial: FaultSet | None = None) -> None:
        self.current = initial or FaultSet()
        self._listeners: list[Callable[[], None]] = []

    def listen(self, changed: Callable[[], None]) -> None:
        """Call `changed` after each change."""
        self._listeners.append(changed)

    def inject(self, **changes: bool | float) -> None:
        """Change some faults and leave the others. Raises pydantic's ValidationError for what is no fault."""
        self.replace(FaultSet.model_validate(self.current.model_dump() | changes))

    def replace(self, faults: FaultSet) -> None:
        """These and no others."""
        if faults != self.current:
            self.current = faults
            for changed in self._listeners:
                changed()


class FaultsFile:
    """A file that holds a FaultSet as JSON. While there is no such file, there are no faults.

    Whoever writes it should rename it into place: what cannot be read as a FaultSet changes nothing.
    """

    def __init__(self, path: Path, faults: Faults) -> None:
        self._path = path
        self._faults = faults
        self._seen: tuple[int, int, int] | None = None

    def poll(self) -> None:
        """Put the file's faults in force if it changed."""
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen == self._seen:
                return
            faults = FaultSet.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            if self._seen is not None:
                self._seen = None
                self._faults.replace(FaultSet())
            return
        except (OSError, ValidationError) as error:
            extra = {"path": str(self._path), "error": str(error)}
            _log.warning("faults file not read, faults left as they are", extra=extra)
            return
        self._seen = seen
        self._faults.replace(faults)
