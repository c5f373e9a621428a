"""A connection's life, at either end: its transport, its timers, its last words. What frames mean is not told here."""

import asyncio
import logging
from abc import abstractmethod
from typing import cast

from stoker_common.http2.bounds import Bounds
from stoker_common.http2.faults import ConnectionFault
from stoker_common.http2.frames import ErrorCode, goaway, ping
from stoker_common.http2.keepalive import Keepalive
from stoker_common.http2.limits import Limits
from stoker_common.http2.peer import peer_name
from stoker_common.http2.sender import Sender

log = logging.getLogger(__name__)

_ALIVE = b"alive?\0\0"


class Lifetime(asyncio.Protocol):
    """Belongs to one event loop. It can be used once it is connected, which is later than it is constructed."""

    def __init__(self, limits: Limits, bounds: Bounds, loop: asyncio.AbstractEventLoop) -> None:
        self._limits = limits
        self._bounds = bounds
        self._loop = loop
        # Whether nothing more is taken, or begun.
        self._closed = False
        # Whether nothing more can be sent.
        self._disconnected = False
        # Who is at the other end, as gRPC writes it.
        self.peer = ""

    # What either end adds.

    @abstractmethod
    def _connected(self) -> None:
        """The transport is there: say the first words."""

    @abstractmethod
    def _forsake(self) -> None:
        """Every stream is over."""

    @abstractmethod
    def _end_if_idle(self) -> None:
        """Where nothing runs any more and nothing is to come, that was all."""

    @abstractmethod
    def _sent_all(self, stream_id: int) -> None:
        """The stream's last frame is on its way."""

    @abstractmethod
    def _worth_asking(self) -> bool:
        """Whether it matters that the other end is still there."""

    @property
    @abstractmethod
    def _heard_to(self) -> int:
        """The last of the other end's streams that was heard of."""

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)
        self.peer = peer_name(transport.get_extra_info("peername"))
        self._sender = Sender(
            self._transport,
            self._loop.call_soon,
            self._limits,
            self._sent_all,
            self._unread,
            self._bounds.unsent.share(self._limits.unsent_bytes),
            lambda why: self._bounds.refuse("unsent", self.peer, why),
        )
        self._keepalive = Keepalive(
            self._loop, self._limits, self._worth_asking, lambda: self._sender.control(ping(_ALIVE)), self._silent
        )
        self._timer = self._loop.call_later(self._limits.handshake_s, self._not_greeted)
        self._connected()

    def eof_received(self) -> bool:
        """See asyncio.Protocol. Who sends no more is gone."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._closed = True
        self._sender.stop()
        self._keepalive.stop()
        self._timer.cancel()
        self._forsake()
        self._sender.gone()
        self._disconnected = True
        self._end_if_idle()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._sender.pause()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._sender.resume()

    # How it ends.

    def close(self, code: ErrorCode = ErrorCode.NO_ERROR, why: str = "") -> None:
        """Close now. What runs is cancelled, what was said already is still sent."""
        if self._closed:
            return
        self._closed = True
        self._sender.control(goaway(self._heard_to, code, why))
        self._hang_up()
        self._forsake()

    def abort(self) -> None:
        """Close now, whatever waits to be sent."""
        self._closed = True
        self._sender.stop()
        self._transport.abort()

    def _hang_up(self) -> None:
        """What was said is still sent, to a peer that takes it within its time."""
        self._sender.finish()
        self._transport.close()
        self._timer.cancel()
        self._timer = self._loop.call_later(self._limits.linger_s, self._transport.abort)

    def _fail(self, fault: ConnectionFault) -> None:
        self._bounds.fault(fault.code.name, self.peer, fault.why)
        self.close(fault.code, fault.why)

    def _silent(self) -> None:
        if not self._closed:
            log.info("a peer is gone", extra={"peer": self.peer, "why": "it answers no PING"})
            self.abort()

    def _not_greeted(self) -> None:
        if not self._closed:
            log.info("a connection is closed", extra={"peer": self.peer, "why": "it never began to speak HTTP/2"})
            self.abort()

    def _unread(self, size: int) -> None:
        if not self._closed:
            log.warning("a connection is closed", extra={"peer": self.peer, "why": f"it leaves {size} bytes unread"})
            self.abort()
