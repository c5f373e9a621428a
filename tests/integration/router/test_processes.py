"""`python -m router --processes 2` as it is run: one port, one record, one set of metrics; a killed process."""

import asyncio
import json
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from discovery.consul_agent import free_ports
from stoker_client import Client, StokerError
from tests.integration.discovery.kit import consul_mesh

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[3]
MODEL = "sim-model"
UP_WITHIN_S = 60.0
CLIENTS = 8


class Router:
    """A router of two processes, and what it shows."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, metrics_port: int, consul: str) -> None:
        self.process = process
        self.port = port
        self.address = f"127.0.0.1:{port}"
        self._metrics_port = metrics_port
        self._consul = consul

    def children(self) -> dict[int, int]:
        """Process ids by number. A launcher that has not become the process yet has its command line, too."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            command = child.cmdline()
            if "router.child" in command:
                found[int(command[command.index("router.child") + 1])] = child.pid
        return found

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples with this name and these labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=10) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def records(self) -> int:
        """How many routers Consul knows."""
        with urllib.request.urlopen(f"http://{self._consul}/v1/catalog/service/stoker-router", timeout=5) as response:
            return len(json.loads(response.read()))

    async def until(self, what: str, holds: Callable[[], bool]) -> None:
        """Poll a condition that takes a while itself."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + UP_WITHIN_S
        while not await asyncio.to_thread(holds):
            assert loop.time() < end_s, f"{what} did not come about"
            await asyncio.sleep(0.05)


@pytest.fixture
def consul(tmp_path: Path) -> Iterator[str]:
    with consul_mesh(("zone-a",), tmp_path) as agents:
        yield agents["zone-a"].config.http_address


@asynccontextmanager
async def mesh(folder: Path, consul: str, *, ticket_key: str = "", own: Sequence[str] = ()) -> AsyncIterator[Router]:
    """Consul, a simulated server, a router of two processes that sees it (`own` are its flags). All are killed after
    the block."""
    server_port, router_port, metrics_port = free_ports(3)
    async with AsyncExitStack() as held:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("STOKER_")}
        common = [f"--consul-address={consul}", "--zone=zone-a", f"--ticket-key={ticket_key}"]
        sim = ["--engine=sim", f"--model={MODEL}", "--sim-load-ms=0", "--sim-step-base-ms=8", "--metrics-port=-1"]
        flags = ["--processes=2", f"--listen-port={router_port}", f"--metrics-port={metrics_port}"]
        started = []
        for name, arguments in {
            "model_server": [*sim, f"--listen-port={server_port}", *common],
            "router": [*flags, *common, *own],
        }.items():
            out = held.enter_context((folder / f"{name}.log").open("wb"))
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", name, *arguments, stdout=out, stderr=out, cwd=ROOT, env=environ
            )
            held.push_async_callback(_end, process)
            started.append(process)
        router = Router(started[1], router_port, metrics_port, consul)
        await router.until("metrics", lambda: _listens(metrics_port))
        await router.until("two processes", lambda: router.metric("stoker_router_processes") == 2)
        # Each of the two sees the server and has a link to it.
        await router.until("links", lambda: router.metric("stoker_router_breaker_state", state="alive") == 2)
        yield router


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def text_of(client: Client, prompt: str, tokens: int, begun: asyncio.Event | None = None) -> str:
    """The whole answer, taken part by part."""
    text = ""
    async for chunk in client.stream(prompt, model=MODEL, max_tokens=tokens, ignore_eos=True, temperature=0):
        text += chunk.text
        if text and begun is not None:
            begun.set()
    return text


async def spread(router: Router, held: AsyncExitStack) -> list[Client]:
    """Clients, a connection each: enough that both processes have some."""
    while True:
        clients = [await held.enter_async_context(Client(router.address)) for _ in range(CLIENTS)]
        names = {(await client.status()).router for client in clients}
        assert names <= {"router-zone-a/1", "router-zone-a/2"}
        if len(names) == 2:
            return clients


async def test_a_killed_process_loses_nothing_is_replaced_and_counters_add_up(tmp_path: Path, consul: str) -> None:
    async with mesh(tmp_path, consul) as router, AsyncExitStack() as held:
        clients = await spread(router, held)
        expected = [await text_of(client, f"prompt {i}", 200) for i, client in enumerate(clients)]
        assert router.metric("stoker_router_requests_total", outcome="ok") == CLIENTS
        assert router.metric("stoker_router_tokens_total") == 200 * CLIENTS
        before = router.children()

        begun = [asyncio.Event() for _ in clients]
        running = [
            asyncio.create_task(text_of(client, f"prompt {i}", 200, begun[i])) for i, client in enumerate(clients)
        ]
        for event in begun:
            await event.wait()
        os.kill(before[1], signal.SIGKILL)
        assert await asyncio.gather(*running) == expected

        await router.until("a new process", lambda: router.metric("stoker_router_processes") == 2)
        after = router.children()
        assert after[2] == before[2], "the other process was none of its business"
        assert after[1] != before[1]
        assert router.metric("stoker_router_process_restarts_total") == 1
        # What was under way on the killed one was counted where it went on; what it had counted before is not lost.
        assert router.metric("stoker_router_requests_total", outcome="ok") == 2 * CLIENTS
        assert router.metric("stoker_router_ttft_seconds_count") == 2 * CLIENTS
        assert router.metric("stoker_router_in_flight") == 0
        assert router.records() == 1


async def test_what_processes_http2_servers_count_adds_up(tmp_path: Path, consul: str) -> None:
    """Clients' connections are each process's own; what ended by a client's fault is one sum, which never falls."""
    async with mesh(tmp_path, consul, own=["--http2=stoker"]) as router, AsyncExitStack() as held:
        clients = await spread(router, held)
        assert router.metric("stoker_http2_connections") >= len(clients)
        assert (
            router.metric("stoker_http2_connections", process="1")
            >= 1
            <= router.metric("stoker_http2_connections", process="2")
        )
        for _ in range(CLIENTS):
            with socket.create_connection(("127.0.0.1", router.port), timeout=5) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                while stranger.recv(4096):
                    pass
        assert router.metric("stoker_http2_faults_total", code="PROTOCOL_ERROR") == CLIENTS
        os.kill(router.children()[1], signal.SIGKILL)
        await router.until("a new process", lambda: router.metric("stoker_router_process_restarts_total") == 1)
        assert router.metric("stoker_http2_faults_total", code="PROTOCOL_ERROR") == CLIENTS
        for limit in ("connections", "unread", "unsent", "metadata"):
            assert router.metric("stoker_http2_refused_total", limit=limit) == 0


async def test_sigterm_ends_all_when_what_runs_has_ended(tmp_path: Path, consul: str) -> None:
    async with mesh(tmp_path, consul) as router, AsyncExitStack() as held:
        clients = await spread(router, held)
        assert router.records() == 1
        begun = [asyncio.Event() for _ in clients]
        running = [asyncio.create_task(text_of(client, f"p {i}", 200, begun[i])) for i, client in enumerate(clients)]
        for event in begun:
            await event.wait()
        children = router.children()
        router.process.terminate()
        assert all(len(text) > 200 for text in await asyncio.gather(*running))
        async with asyncio.timeout(20):
            assert await router.process.wait() == 0
        assert router.records() == 0
        assert not any(psutil.pid_exists(pid) for pid in children.values())
        assert not _listens(router.port)


async def test_processes_end_with_their_parent(tmp_path: Path, consul: str) -> None:
    async with mesh(tmp_path, consul) as router:
        children = router.children()
        router.process.kill()
        await router.until("the end", lambda: not any(psutil.pid_exists(pid) for pid in children.values()))
        with pytest.raises(StokerError):
            async with Client(router.address, connect_timeout_s=1) as client:
                await client.status()


@pytest.mark.parametrize("share", [False, True])
async def test_a_taken_port_is_told(share: bool) -> None:
    """Also one that would share: it is another router's."""
    with socket.socket() as taken:
        if share:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "router", "--processes=2", f"--listen-port={port}", "--metrics-port=-1"),
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        _, said = await process.communicate()
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}".encode() in said
