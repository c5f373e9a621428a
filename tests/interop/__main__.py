"""Our own HTTP/2 server (ADR 150) with clients and proxies that are not ours: `python -m tests.interop`.

Takes what is on the machine, and says what is not: grpc's C core (always), grpc-js (`npm install @grpc/grpc-js
@grpc/proto-loader` somewhere, `--node-modules`), grpc-go, nginx, haproxy, h2load, nghttp, curl (Debian: golang-go
golang-google-grpc-dev protoc-gen-go-1-3 nginx-light haproxy nghttp2-client curl). A few minutes. Ends with 1 if a case
failed.
"""

import argparse
import asyncio
import json
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from discovery.consul_agent import free_ports
from tests.fakes.until import until
from tests.interop.mesh import Served, served
from tests.interop.probes import PROBES
from tests.interop.tools import go_client, haproxy, js_client, nginx, python_client, running

_CLIENT_WITHIN_S = 180.0
# How long the router is away: longer than a client's first attempts to come back.
_AWAY_S = 0.5
# What a proxy does by itself, with gRPC's server behind it as well.
_PROXYS_OWN = {
    ("grpc.aio by haproxy", "too_large"): "haproxy resets a request that is answered before it has ended, by CANCEL",
    ("grpc sync by haproxy", "too_large"): "the same",
}


@dataclass(slots=True)
class Tried:
    """What was tried, and what came of it."""

    failures: list[str] = field(default_factory=list)
    cases: int = 0

    def note(self, who: str, case: str, why: str) -> None:
        """One case; `why` it failed, or nothing."""
        self.cases += 1
        if why and (own := _PROXYS_OWN.get((who, case))):
            sys.stdout.write(f"{who:28} {case:10} refused otherwise: {own}\n")
            return
        if why:
            self.failures.append(f"{who}: {case}: {why}")
        sys.stdout.write(f"{who:28} {case:10} {'FAILED ' + why[:2000] if why else 'ok'}\n")
        sys.stdout.flush()


async def client(
    who: str, command: Sequence[str], environment: Mapping[str, str], there: Served, address: str, tried: Tried
) -> None:
    """A client's cases, one after the other, against `address`, which leads to the router of `there`."""
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        started = asyncio.Event()
        life = tasks.create_task(there.live(started))
        await started.wait()
        process = await asyncio.create_subprocess_exec(
            *(address if part == "ADDRESS" else part for part in command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **environment},
        )
        stack.callback(_end, process)
        assert process.stdin is not None and process.stdout is not None
        seen = set[str]()
        async with asyncio.timeout(_CLIENT_WITHIN_S):
            while line := await process.stdout.readline():
                told = json.loads(line)
                if told["case"] == "streams run":
                    there.leave()
                    continue
                seen.add(told["case"])
                tried.note(who, told["case"], told["why"])
                if told["case"] == "cancel":
                    tried.note(who, "idle after", await _idle(there))
                if told["case"] == "drain":
                    there.leave()
                    await life
                    await asyncio.sleep(_AWAY_S)
                    started.clear()
                    life = tasks.create_task(there.live(started))
                    await started.wait()
                    process.stdin.write(b"\n")
            await process.wait()
        if "restart" not in seen:
            tried.note(who, "all cases", f"it ended after {sorted(seen)}, with {process.returncode}")
        tried.note(who, "idle after", await _idle(there))
        there.leave()


def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()


async def _idle(there: Served) -> str:
    try:
        await until(there.idle)
    except AssertionError:
        return "something still runs for calls that are over"
    return ""


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@asynccontextmanager
async def ways(there: Served, folder: Path, tried: Tried) -> AsyncIterator[dict[str, str]]:
    """Addresses by which the router is reached: its own, and each proxy's."""
    found = {"": there.address}
    async with AsyncExitStack() as stack:
        for name, make in (("nginx", nginx), ("haproxy", haproxy)):
            (port,) = free_ports(1)
            command = make(folder, port, there.address)
            if command is None:
                sys.stdout.write(f"{name} is not here\n")
                continue
            await stack.enter_async_context(running(command, folder / f"{name}.out"))
            await until(lambda port=port: _listens(port))  # type: ignore[misc]
            found[f" by {name}"] = f"127.0.0.1:{port}"
        yield found


async def main(http2: str, only: str, modules: Path) -> int:
    """All clients by all ways; the process's exit code."""
    tried = Tried()
    with tempfile.TemporaryDirectory(prefix="stoker-interop-") as name:
        folder = Path(name)
        clients: dict[str, tuple[list[str], dict[str, str]]] = {
            "grpc.aio": (python_client("aio"), {}),
            "grpc sync": (python_client("sync"), {}),
        }
        if js := js_client(modules):
            clients["grpc-js"] = js
        if go := go_client(folder):
            clients["grpc-go"] = (go, {})
        for missing in {"grpc-js", "grpc-go", "h2load", "nghttp", "curl"} - {*clients, *PROBES}:
            sys.stdout.write(f"{missing} is not here\n")
        async with served(http2) as there:
            (there.port,) = free_ports(1)
            async with ways(there, folder, tried) as addresses:
                for way, address in addresses.items():
                    for who, (command, environment) in clients.items():
                        if only in who + way:
                            await client(who + way, command, environment, there, address, tried)
            await _probe(there, folder, only, tried)
    sys.stdout.write(f"{tried.cases} cases, {len(tried.failures)} failed\n")
    return 1 if tried.failures else 0


async def _probe(there: Served, folder: Path, only: str, tried: Tried) -> None:
    async with asyncio.TaskGroup() as tasks:
        started = asyncio.Event()
        tasks.create_task(there.live(started))
        await started.wait()
        for name, probe in PROBES.items():
            if only in name:
                tried.note(name, "probe", await probe(there.address, folder))
        there.leave()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--http2", choices=("stoker", "grpc"), default="stoker", help="whose HTTP/2 serves")
    parser.add_argument("--only", default="", help="those whose name has this, as `grpc-js by nginx`")
    parser.add_argument("--node-modules", type=Path, default=Path("node_modules"), help="where npm put grpc-js")
    arguments = parser.parse_args()
    sys.exit(asyncio.run(main(arguments.http2, arguments.only, arguments.node_modules.resolve())))
