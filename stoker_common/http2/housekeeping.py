"""What of a connection's frames is about the connection itself, at either end: settings, pings, goodbyes.

All of them carry nothing, and are paid for from a budget.
"""

import asyncio
from abc import abstractmethod

from stoker_common.http2.bounds import Bounds
from stoker_common.http2.bucket import Bucket
from stoker_common.http2.faults import ConnectionFault, protocol_error, too_much
from stoker_common.http2.frames import (
    ACK,
    FIRST_WINDOW_BYTES,
    GOAWAY,
    PING,
    PRIORITY,
    SETTINGS,
    SETTINGS_ACK,
    ErrorCode,
    Setting,
    ping,
    settings,
    window_update,
)
from stoker_common.http2.lifetime import Lifetime
from stoker_common.http2.limits import Limits
from stoker_common.http2.peer import PeerSettings
from stoker_common.http2.reader import Frame

# SETTINGS may touch every stream's window; of so many streams each costs as much as another frame does.
_SETTINGS_WEIGHT = 100.0
_STREAMS_A_FRAME = 4


class Housekeeping(Lifetime):
    """Takes what has no stream."""

    def __init__(self, limits: Limits, bounds: Bounds, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limits, bounds, loop)
        self._peer_settings = PeerSettings()
        self._control = Bucket(limits.control_burst, limits.control_per_s, loop.time)

    # What either end adds.

    @abstractmethod
    def _settled(self) -> None:
        """SETTINGS of the other end's came, and hold."""

    @abstractmethod
    def _answered(self, payload: bytes) -> None:
        """A PING of ours was answered."""

    @abstractmethod
    def _going(self, last_id: int, code: int, why: bytes) -> None:
        """The other end takes no more streams than those up to a number."""

    @property
    @abstractmethod
    def _streams_open(self) -> int:
        """How many streams there are."""

    @abstractmethod
    def _widen_all(self, size: int) -> None:
        """Every stream's window grows by so much, or shrinks. Raises ConnectionFault."""

    # What is done.

    def _greet(self, values: dict[Setting, int]) -> None:
        """The first words, but for a client's preface."""
        self._sender.control(settings(values))
        self._sender.control(window_update(0, self._limits.connection_window_bytes - FIRST_WINDOW_BYTES))

    def _keep(self, frame: Frame) -> None:
        """Take a frame. Raises ConnectionFault."""
        kind, flags, stream_id, payload = frame
        if kind == PING:
            self._ping(flags, stream_id, payload)
        elif kind == SETTINGS:
            self._settings(flags, stream_id, payload)
        elif kind == GOAWAY:
            self._spend(1.0)
            if stream_id or len(payload) < 8:
                raise protocol_error("a GOAWAY that is none")
            self._going(int.from_bytes(payload[:4]) & 0x7FFFFFFF, int.from_bytes(payload[4:8]), payload[8:])
        else:
            # Unknown types are passed over, and priorities, which nobody uses any more; for nothing is neither.
            self._spend(1.0)
            if kind == PRIORITY and not stream_id:
                raise protocol_error("a PRIORITY of no stream")
            if kind == PRIORITY and len(payload) != 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a PRIORITY frame has five bytes")

    def _ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise protocol_error("a PING has no stream")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a PING has eight bytes")
        self._spend(1.0)
        if flags & ACK:
            self._answered(payload)
        else:
            self._sender.control(ping(payload, ACK))

    def _settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._spend(1.0 if flags & ACK else max(_SETTINGS_WEIGHT, self._streams_open / _STREAMS_A_FRAME))
        if stream_id:
            raise protocol_error("SETTINGS have no stream")
        if flags & ACK and payload:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "an answer to SETTINGS says nothing")
        if flags & ACK:
            return
        wider = self._peer_settings.take(payload)
        self._sender.frame_bytes(self._peer_settings.frame_bytes)
        if wider:
            self._widen_all(wider)
        self._sender.control(SETTINGS_ACK)
        self._settled()

    def _spend(self, weight: float) -> None:
        """A frame came that carries nothing. Raises ConnectionFault where there are too many."""
        if not self._control.take(weight):
            self._control.earn(4.0 * self._sender.data_frames())
            if not self._control.take(weight):
                raise too_much("too many frames that carry nothing")
