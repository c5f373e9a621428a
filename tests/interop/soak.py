"""A router on our own HTTP/2 for as long as asked, with clients of every kind, good and bad: `python -m
tests.interop.soak --minutes 15`. Every minute they pause, and what is left then has to stay as it was."""

import argparse
import asyncio
import gc
import json
import os
import random
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from discovery.consul_agent import free_ports
from tests.interop.clients.python import Aio, Seen, asked
from tests.interop.tools import go_client, js_client

_WORKERS = 40
_ROUND_S = 55.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
# As long as a client that vanished may be kept: it is asked after 5 s, and has 2 s to answer.
_SETTLE_S = 10.0


class Clients:
    """What is done, by name, again and again; `done` counts it."""

    def __init__(self, address: str, rng: random.Random) -> None:
        self._address = address
        self._rng = rng
        self.done = Counter[str]()
        self.tokens = 0

    async def work(self, until_s: float) -> None:
        """One worker: a channel for some calls, then another."""
        while time.monotonic() < until_s:
            caller = Aio(self._address)
            try:
                for _ in range(self._rng.randrange(1, 30)):
                    if time.monotonic() >= until_s:
                        break
                    await self._one(caller)
            finally:
                await caller.close()

    async def _one(self, caller: Aio) -> None:
        ways: list[Callable[[Aio], Awaitable[None]]] = [
            self.unary, self.unary, self.stream, self.stream, self.cancelled, self.cancelled, self.late, self.slow,
            self.never_reads, self.vanishes, self.garbage, self.metadata,
        ]  # fmt: skip
        way = self._rng.choice(ways)
        name = way.__name__
        try:
            await way(caller)
        except grpc.RpcError as error:
            found: Any = error
            name += f" {found.code().name}"
        self.done[name] += 1

    async def unary(self, caller: Aio) -> None:
        """An answer at once, compressed or not."""
        pressed = self._rng.choice((grpc.Compression.NoCompression, grpc.Compression.Gzip))
        text = "lorem ipsum " * self._rng.choice((1, 1, 1, 5_000))
        await caller.unary(asked(text, 16), compression=pressed)
        self.tokens += 16

    async def stream(self, caller: Aio) -> None:
        """A stream to its end."""
        seen = await caller.whole(asked(f"stream {self._rng.random()}", 200))
        if seen.tokens != 200 or not seen.finished:
            raise AssertionError("a stream is not whole")
        self.tokens += 200

    async def cancelled(self, caller: Aio) -> None:
        """A stream that is given up in the middle."""

        def at_twenty(seen: Seen, call: Any) -> None:
            if seen.tokens >= 20:
                call.cancel()

        await caller.whole(asked("cancelled", 100_000), at_twenty)

    async def late(self, caller: Aio) -> None:
        """A deadline in the middle."""
        await caller.whole(asked("late", 100_000), timeout=self._rng.random())

    async def slow(self, caller: Aio) -> None:
        """A reader that pauses after each message, longer than they take to come."""
        call = caller.begin(asked("slow", 2_000))
        for _ in range(20):
            await call.read()
            await asyncio.sleep(0.05)
        call.cancel()

    async def never_reads(self, _: Aio) -> None:
        """One that asks for much and takes nothing, then goes; a connection of its own."""
        caller = Aio(self._address)
        caller.begin(asked("never", 50_000))
        await asyncio.sleep(3.0)
        await caller.close()

    async def vanishes(self, _: Aio) -> None:
        """A connection that is reset by its client, after a greeting and half a frame."""
        loop = asyncio.get_running_loop()
        host, port = self._address.split(":")
        with socket.socket() as raw:
            raw.setblocking(False)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await loop.sock_connect(raw, (host, int(port)))
            await loop.sock_sendall(raw, _PREFACE + b"\0\1\0\1")
            await loop.sock_recv(raw, 100)

    async def garbage(self, _: Aio) -> None:
        """Bytes that are no HTTP/2, or stop to be."""
        reader, writer = await asyncio.open_connection(*self._address.split(":"))
        try:
            writer.write(self._rng.choice((b"", _PREFACE)) + self._rng.randbytes(200))
            await writer.drain()
            async with asyncio.timeout(5.0):
                while await reader.read(4096):
                    pass
        except (ConnectionError, TimeoutError):
            pass  # hung up on, or half a frame that the server waits for: both are right
        finally:
            writer.close()

    async def metadata(self, caller: Aio) -> None:
        """More than is taken, or nearly as much."""
        size = self._rng.choice((3_000, 30_000))
        await caller.unary(asked("metadata", 4), metadata=(("x-large", "v" * size),))


async def others(address: str, commands: list[tuple[list[str], dict[str, str]]], until_s: float) -> int:
    """grpc-js and grpc-go, one run of their cases after another: how many runs."""
    runs = 0
    while commands and time.monotonic() < until_s:
        command, environment = commands[runs % len(commands)]
        process = await asyncio.create_subprocess_exec(
            *(address if part == "ADDRESS" else part for part in command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **environment},
        )
        out, _ = await process.communicate(b"\n")
        for line in out.splitlines():
            if why := json.loads(line).get("why"):
                sys.stdout.write(f"{command[0]}: {line.decode()} {why}\n")
        runs += 1
    return runs


async def main(minutes: float, modules: Path) -> None:
    """Rounds of a minute; a line of figures after each."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    rng = random.Random(1)
    with tempfile.TemporaryDirectory(prefix="stoker-soak-") as folder:
        commands = [js] if (js := js_client(modules)) else []
        if go := go_client(Path(folder)):
            commands.append((go, {}))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.interop.soak_mesh", str(port)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdin is not None and process.stdout is not None
        clients = Clients(address, rng)
        try:
            process.stdin.write(b"\n")
            sys.stdout.write((await process.stdout.readline()).decode())  # it serves
            end_s = time.monotonic() + minutes * 60
            while time.monotonic() < end_s:
                until_s = time.monotonic() + _ROUND_S
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(_WORKERS):
                        tasks.create_task(clients.work(until_s))
                    tasks.create_task(others(address, commands, until_s))
                gc.collect()  # grpc lets go of a closed channel's connection when nobody knows its calls any more
                await asyncio.sleep(_SETTLE_S)
                process.stdin.write(b"\n")
                sys.stdout.write((await process.stdout.readline()).decode())
                sys.stdout.flush()
        finally:
            process.stdin.close()
            await process.wait()
    sys.stdout.write(f"{clients.tokens} tokens; {dict(sorted(clients.done.items()))}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--node-modules", type=Path, default=Path("node_modules"), help="where npm put grpc-js")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.minutes, arguments.node_modules.resolve()))
