"""Passes HTTP/2 connections on, and does what a peer or a middle box may do to them.

`python -m tests.chaos.h2_proxy HOST PORT TARGET COMMANDS`: COMMANDS is a file, obeyed once each time it changes.
`goaway`: GOAWAY to every client, which keeps its streams and must open no more there. `goaway-all`: the same, but none
of its streams was processed. `reset CODE`: RST_STREAM with that code, to both ends of one stream.
"""

import asyncio
import random
import sys
from collections.abc import Iterator
from pathlib import Path

# RFC 9113 sections 3.4, 4.1 and 6.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADER_BYTES = 9
_DATA, _HEADERS, _RST_STREAM, _GOAWAY, _CONTINUATION = 0x0, 0x1, 0x3, 0x7, 0x9
_END_STREAM, _END_HEADERS = 0x1, 0x4
_NO_ERROR = 0
_LOOK_EVERY_S = 0.02


def frame(kind: int, stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    """A frame as it is sent."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream_id.to_bytes(4) + payload


class Direction:
    """One way of a connection: whole frames from a reader to a writer, and our own only where they may stand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._held: list[bytes] = []
        # Between HEADERS and its CONTINUATION nothing else may stand.
        self._whole = True

    def inject(self, data: bytes) -> None:
        """Send a frame of ours, as soon as it may stand there."""
        if self._whole:
            self._writer.write(data)
        else:
            self._held.append(data)

    async def next(self) -> tuple[int, int, int]:
        """Pass one frame on: its type, flags and stream. Raises EOFError at the end, OSError where it breaks."""
        header = await self._reader.readexactly(_HEADER_BYTES)
        payload = await self._reader.readexactly(int.from_bytes(header[:3]))
        kind, flags = header[3], header[4]
        self._writer.write(header + payload)
        if kind in (_HEADERS, _CONTINUATION):
            self._whole = bool(flags & _END_HEADERS)
        if self._whole:
            for data in self._held:
                self._writer.write(data)
            self._held.clear()
        await self._writer.drain()
        return kind, flags, int.from_bytes(header[5:]) & 0x7FFFFFFF


class Connection:
    """A client's connection and ours to the target for it."""

    def __init__(self, down: Direction, up: Direction) -> None:
        self._down = down
        self._up = up
        self._last = 0
        self.open: set[int] = set()

    async def run(self) -> None:
        """Until either end closes."""
        ways = [asyncio.ensure_future(self._requests()), asyncio.ensure_future(self._answers())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    def goaway(self, *, everything: bool) -> None:
        """Tell the client to go elsewhere with what comes, or with everything."""
        last = 0 if everything else self._last
        self._down.inject(frame(_GOAWAY, 0, last.to_bytes(4) + _NO_ERROR.to_bytes(4)))

    def reset(self, stream_id: int, code: int) -> None:
        """End one stream for both ends."""
        self.open.discard(stream_id)
        for way in (self._down, self._up):
            way.inject(frame(_RST_STREAM, stream_id, code.to_bytes(4)))

    async def _requests(self) -> None:
        while True:
            kind, _, stream_id = await self._up.next()
            if kind == _HEADERS and stream_id > self._last:
                self._last = stream_id
                self.open.add(stream_id)
            elif kind == _RST_STREAM:
                self.open.discard(stream_id)

    async def _answers(self) -> None:
        while True:
            kind, flags, stream_id = await self._down.next()
            if kind == _RST_STREAM or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
                self.open.discard(stream_id)


class Proxy:
    """All connections to one target."""

    def __init__(self, target: str, commands: Path, rng: random.Random) -> None:
        self._host, port = target.rsplit(":", 1)
        self._port = int(port)
        self._commands = commands
        self._rng = rng
        self._connections: set[Connection] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection."""
        other: asyncio.StreamWriter | None = None
        try:
            there, other = await asyncio.open_connection(self._host, self._port)
            other.write(await reader.readexactly(len(_PREFACE)))
            connection = Connection(down=Direction(there, writer), up=Direction(reader, other))
            self._connections.add(connection)
            try:
                await connection.run()
            finally:
                self._connections.discard(connection)
        except (OSError, EOFError):
            return  # the target is away: the client sees its connection close
        finally:
            for each in (writer, other):
                if each is not None:
                    each.close()

    async def obey(self) -> None:
        """Do what the file says, each time it changes."""
        seen = 0
        while True:
            if self._commands.exists() and (changed := self._commands.stat().st_mtime_ns) != seen:
                seen = changed
                self._do(*self._commands.read_text().split())
            await asyncio.sleep(_LOOK_EVERY_S)

    def _do(self, command: str, code: str = "0") -> None:
        if command == "reset":
            running = list(self._running())
            if running:
                connection, stream_id = self._rng.choice(running)
                connection.reset(stream_id, int(code))
            return
        for connection in self._connections:
            connection.goaway(everything=command == "goaway-all")

    def _running(self) -> Iterator[tuple[Connection, int]]:
        for connection in self._connections:
            for stream_id in sorted(connection.open):
                yield connection, stream_id


async def main(host: str, port: int, target: str, commands: Path) -> None:
    """Serve until killed."""
    proxy = Proxy(target, commands, random.Random())
    async with await asyncio.start_server(proxy.accept, host, port):
        await proxy.obey()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])))
