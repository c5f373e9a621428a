"""One channel's way to its server: a connection made when it is needed, made again when it broke; calls that wait."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

import grpc

from stoker_common.backoff import Backoff
from stoker_common.http2.answer import End
from stoker_common.http2.bounds import Bounds
from stoker_common.http2.client_connection import ClientConnection
from stoker_common.http2.limits import Limits
from stoker_common.http2.target import Target
from stoker_common.refusal import Code

State = grpc.ChannelConnectivity
# How long a connection that is closed may take to send the rest.
_CLOSE_WITHIN_S = 1.0


# Makes a connection to an address that speaks by what it is given. Raises OSError.
Connect = Callable[[Callable[[], asyncio.Protocol], tuple[str, int]], Awaitable[object]]


class Waits(Protocol):
    """A call that is to begin."""

    @property
    def patient(self) -> bool:
        """Whether it waits while the server cannot be reached."""

    def begin(self, connection: ClientConnection) -> None:
        """There is room for it."""

    def over(self, end: End) -> None:
        """It cannot begin."""

    def cancel(self) -> bool:
        """It is to end now."""


class Dialer:
    """Belongs to the event loop on which its first call begins.

    States are gRPC's: a connection that broke leaves it IDLE until somebody needs it, one that could not be made
    TRANSIENT_FAILURE until one is.
    """

    def __init__(self, target: Target, limits: Limits, bounds: Bounds, backoff: Backoff, connect: Connect) -> None:
        self._connect = connect
        self._target = target
        self._limits = limits
        self._bounds = bounds
        self._backoff = backoff
        self.state = State.IDLE
        # Whether it takes no new calls.
        self.shuts = False
        self._connection: ClientConnection | None = None
        # All that are not over: those that take no more calls, too.
        self._connections: set[ClientConnection] = set()
        # All that are not over, and of them those that have not begun.
        self._calls: set[Waits] = set()
        self._waiting: dict[Waits, None] = {}
        self._dialling: asyncio.Task[None] | None = None
        # The one whose server has yet to speak.
        self._trying: ClientConnection | None = None
        self._tried: asyncio.Future[None]
        self._watching: list[asyncio.Future[None]] = []
        self._why = ""
        self._quiet = asyncio.Event()

    # What calls ask.

    def begin(self, call: Waits) -> None:
        """Begin it now if there is room, or else when there is."""
        self._calls.add(call)
        connection = self._connection
        if connection is not None and not self._waiting and connection.room:
            call.begin(connection)
        elif self.state is State.TRANSIENT_FAILURE and not call.patient:
            call.over(self._unreachable())
        else:
            self._waiting[call] = None
            self.connect()

    def ended(self, call: Waits) -> None:
        """It is over, begun or not."""
        self._waiting.pop(call, None)
        self._calls.discard(call)
        if self.shuts:
            self._quiet.set()

    # What the channel asks.

    def connect(self) -> None:
        """See to it that there is a connection, or will be."""
        if self._connection is None and self._dialling is None and self.state is not State.SHUTDOWN:
            if self.state is State.IDLE:
                self._become(State.CONNECTING)
            self._dialling = asyncio.get_running_loop().create_task(self._dial(), name=f"dial {self._target}")

    async def change(self, state: State) -> None:
        """Wait until the state is another one."""
        while self.state is state:
            watch = asyncio.get_running_loop().create_future()
            self._watching.append(watch)
            try:
                await watch
            finally:
                if watch in self._watching:
                    self._watching.remove(watch)

    async def close(self, grace_s: float | None) -> None:
        """Take no new calls, let those there are end within `grace_s` seconds, cancel the rest, and hang up."""
        self.shuts = True
        if grace_s:
            await self._wait(lambda: not self._calls, grace_s)
        dialling, self._dialling = self._dialling, None
        self._become(State.SHUTDOWN)
        if dialling is not None:
            dialling.cancel()
            await asyncio.wait((dialling,))
        for call in list(self._calls):
            call.cancel()
        for connection in list(self._connections):
            connection.close()
        await self._wait(lambda: not self._connections, _CLOSE_WITHIN_S)
        for connection in list(self._connections):
            connection.abort()

    async def _wait(self, done: Callable[[], bool], within_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not done():
                    self._quiet.clear()
                    await self._quiet.wait()

    # What connections tell.

    def ready(self, connection: ClientConnection) -> None:
        """See `Owner`."""
        if connection is self._trying and not self._tried.done():
            self._tried.set_result(None)
        elif connection is self._connection:
            self._pump()

    def leaving(self, connection: ClientConnection) -> None:
        """See `Owner`."""
        if connection is self._connection:
            self._connection = None
            if self.state is State.READY:
                self._become(State.IDLE)
            if self._waiting:
                self.connect()
        elif connection is self._trying and not self._tried.done():
            self._tried.set_exception(ConnectionError(connection.why))

    def lost(self, connection: ClientConnection) -> None:
        """See `Owner`."""
        self._connections.discard(connection)
        self._quiet.set()

    # How it connects.

    async def _dial(self) -> None:
        try:
            reached = await self._reach()
            while not reached:
                await asyncio.sleep(self._backoff.delay_s())
                reached = await self._reach()
        finally:
            self._dialling = None

    async def _reach(self) -> bool:
        """Try every address of the target once."""
        try:
            addresses = await self._target.addresses(self._limits.handshake_s)
        except (OSError, TimeoutError) as error:
            self._failed(f"{self._target} is not known: {error}")
            return False
        why = f"{self._target} has no addresses"
        for address in addresses:
            try:
                connection = await self._connected(address)
            except (OSError, TimeoutError) as error:
                why = f"{address}: {str(error) or 'it does not answer'}"
                continue
            if connection.left:
                why = f"{address}: {connection.why}"
                continue
            self._connection = connection
            self._backoff.reset()
            self._become(State.READY)
            self._pump()
            return True
        self._failed(f"failed to connect to all addresses; last error: {why}")
        return False

    async def _connected(self, address: tuple[str, int]) -> ClientConnection:
        """A connection whose server has said that it speaks HTTP/2. Raises OSError or TimeoutError."""
        loop = asyncio.get_running_loop()
        made = ClientConnection(self._target.authority, self, self._limits, self._bounds, loop)
        self._trying, self._tried = made, loop.create_future()
        try:
            async with asyncio.timeout(self._limits.connect_s):
                await self._connect(lambda: made, address)
                self._connections.add(made)
                await self._tried
        except BaseException:
            if made in self._connections:
                made.abort()
            raise
        finally:
            self._trying = None
        return made

    def _failed(self, why: str) -> None:
        self._why = why
        self._become(State.TRANSIENT_FAILURE)
        for call in [call for call in self._waiting if not call.patient]:
            self._waiting.pop(call, None)
            call.over(self._unreachable())

    def _unreachable(self) -> End:
        return End.of(Code.UNAVAILABLE, self._why)

    def _pump(self) -> None:
        """Begin what waits, as far as there is room."""
        while self._waiting and self._connection is not None and self._connection.room:
            call = next(iter(self._waiting))
            del self._waiting[call]
            call.begin(self._connection)

    def _become(self, state: State) -> None:
        if state is self.state:
            return
        self.state = state
        watching, self._watching = self._watching, []
        for watch in watching:
            if not watch.done():
                watch.set_result(None)
