"""The systems that are measured, each a process of its own in front of the same two mock servers, all up at once."""

import asyncio
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from bench.relay.load import Load
from bench.relay.load_direct import DirectLoad
from bench.relay.load_grpc import GrpcLoad
from bench.relay.load_http import HttpLoad
from bench.relay.load_link import LinkLoad
from bench.relay.script import MODEL, MODEL_DIRECT, STEP_MS
from discovery.consul_agent import ConsulAgent, find_consul, free_ports, plan_agents, ready, stop_all
from stoker.v1 import router_pb2, router_pb2_grpc
from stoker_common.channel import client_options

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".cache" / "peers"
UP_WITHIN_S = 60.0
# Those in which clients stream from a server themselves.
DIRECT = frozenset({"stoker direct", "stoker h2 direct"})
# As many streams as there are, a token of each every 20 ms.
_SIM = (
    *("--engine=sim", f"--model={MODEL_DIRECT}", f"--sim-step-base-ms={STEP_MS:g}", "--sim-step-per-stream-ms=0"),
    *("--sim-max-streams=1024", "--sim-max-batched-tokens=8192", "--sim-kv-tokens=4000000"),
)


@dataclass(frozen=True, slots=True)
class System:
    """One way from a client to a server. `pids`: whose CPU it costs, beside the server's and the client's."""

    name: str
    address: str
    pids: tuple[int, ...]

    def load(self, streams: int = 1) -> Load:
        """A load generator for it."""
        match self.name:
            case "stoker link" | "stoker h2 link":
                return LinkLoad(self.address)
            case "stoker direct" | "stoker h2 direct":
                return DirectLoad(self.address)
            case "http direct" | "vllm-router" | "smg":
                return HttpLoad(self.address)
            case _:
                return GrpcLoad(self.address, streams)


def peers_installed() -> bool:
    """Whether `make bench-peers` has been run."""
    return (PEERS / "bin" / "vllm-router").exists()


@contextmanager
def systems(folder: Path, names: Sequence[str]) -> Iterator[list[System]]:
    """Those that are named, of `direct`, `passthrough`, `stoker`, `stoker link`, `stoker direct`, `stoker x2`,
    `passthrough h2`, `stoker h2`, `stoker h2 link`, `stoker h2 direct`, `http direct`, `vllm-router`, `smg`. Those h2
    speak our own HTTP/2, to clients and to servers."""
    with ExitStack() as stack:
        (plan,) = plan_agents(find_consul(ROOT), ("zone-a",))
        agent = ConsulAgent(plan, folder / "consul.log")
        agent.start()
        stack.callback(stop_all, [agent])
        asyncio.run(ready([agent]))
        consul = agent.config.http_address
        mock, mock_http, own, spare = free_ports(4)
        up = _Starter(stack, folder)
        python = sys.executable
        up.start("mock", python, "-m", "bench.relay.backend_grpc", f"--port={mock}", f"--consul={consul}")
        up.start("mock-http", python, "-m", "bench.relay.backend_http", f"--port={mock_http}")
        found = [
            System("direct", f"127.0.0.1:{mock}", ()),
            System("http direct", f"127.0.0.1:{mock_http}", ()),
        ]
        upstream = f"http://127.0.0.1:{mock_http}"
        _until(lambda: _http_ok(f"{upstream}/health"), "the mock for HTTP")
        quiet = ["--metrics-port=-1", "--log-level=warning", f"--consul-address={consul}", "--zone=zone-a"]
        key = "--ticket-key=a key for a benchmark on one machine"
        if DIRECT.intersection(names):
            port = free_ports(1)[0]
            up.start("sim", python, "-m", "model_server", f"--listen-port={port}", *_SIM, *quiet, key)
        passthrough = [python, "-m", "bench.relay.passthrough", f"--to=127.0.0.1:{mock}"]
        for name in names:
            port = free_ports(1)[0]
            command = {
                "passthrough": [*passthrough, f"--port={port}"],
                "passthrough h2": [*passthrough, f"--port={port}", "--http2=stoker"],
                "stoker": [python, "-m", "router", f"--listen-port={port}", "--http2=grpc", *quiet],
                # A router of its own, so that each one's CPU is of its own streams.
                "stoker link": [python, "-m", "router", f"--listen-port={port}", "--http2=grpc", *quiet],
                "stoker h2": [python, "-m", "router", f"--listen-port={port}", "--http2=stoker", *quiet],
                "stoker h2 link": [python, "-m", "router", f"--listen-port={port}", "--http2=stoker", *quiet],
                "stoker direct": [python, "-m", "router", f"--listen-port={port}", "--http2=grpc", *quiet, key],
                "stoker h2 direct": [python, "-m", "router", f"--listen-port={port}", "--http2=stoker", *quiet, key],
                "stoker x2": [python, "-m", "router", f"--listen-port={port}", "--processes=2", *quiet],
                "vllm-router": [
                    *(str(PEERS / "bin" / "vllm-router"), "--host=127.0.0.1", f"--port={port}"),
                    *("--policy=round_robin", f"--prometheus-port={own}", "--log-level=error"),
                    *("--worker-urls", upstream),
                ],
                "smg": [
                    *(str(PEERS / "bin" / "smg"), "launch", "--host=127.0.0.1", f"--port={port}"),
                    *("--policy=round_robin", f"--prometheus-port={spare}", "--log-level=error"),
                    *("--worker-urls", upstream),
                ],
            }.get(name)
            if command is None:
                continue
            pid = up.start(name, *command)
            address = f"127.0.0.1:{port}"
            if name in ("vllm-router", "smg"):
                _until(lambda at=address: _answers(at), name)  # type: ignore[misc]
            elif name in ("passthrough", "passthrough h2"):
                _until(lambda at=address: _listens(at), name)  # type: ignore[misc]
            else:
                asyncio.run(routable(address, MODEL_DIRECT if name in DIRECT else MODEL))
            found.append(System(name, address, (pid,)))
        yield [system for system in found if system.name in names]


class _Starter:
    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder

    def start(self, name: str, *command: str) -> int:
        """Its process id; it is stopped when the stack is closed."""
        with (self._folder / f"{name}.log").open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT)
        self._stack.callback(_stop, process)
        return process.pid


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + UP_WITHIN_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what} was not up within {UP_WITHIN_S:g} s; its log is in the run's folder (--keep)")
        time.sleep(0.1)


def _http_ok(url: str, data: bytes | None = None) -> bool:
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _answers(address: str) -> bool:
    return _http_ok(f"http://{address}/v1/completions", b'{"model":"bench","prompt":"once","max_tokens":16}')


def _listens(address: str) -> bool:
    async def listens() -> bool:
        async with grpc.aio.insecure_channel(address) as channel:
            generate: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                "/stoker.v1.InferenceService/Generate"
            )
            try:
                await generate(b"", timeout=2)
            except grpc.aio.AioRpcError:
                return False
            return True

    return asyncio.run(listens())


async def routable(address: str, model: str = "") -> None:
    """Wait until the router lists a server, of the model if one is named."""
    async with grpc.aio.insecure_channel(address, options=client_options()) as channel, asyncio.timeout(UP_WITHIN_S):
        while True:
            try:
                status = await router_pb2_grpc.RouterServiceStub(channel).Status(router_pb2.StatusRequest(), timeout=1)
            except grpc.aio.AioRpcError:
                status = router_pb2.StatusResponse()
            there = [each for zone in status.zones for each in zone.endpoints]
            if any(not model or model == each.name for one in there for each in one.endpoint.models):
                return
            await asyncio.sleep(0.1)
