"""What direct mode costs the router: `python -m bench.direct`, in the same run as the relay over calls and over a link.

Starts a Consul agent, a simulated server that makes a token of each stream every 20 ms, and a router, each a process of
its own, and streams from here with the SDK. CPU is the router process's own, from the operating system, less what it
uses with nothing to do. Per token: over a window in which `--streams` run. Per request: over `--requests` of 64 tokens,
64 at a time; in direct mode that is Route and all that the router hears of them.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import uvloop

from bench.relay.cpu import used_s
from bench.relay.systems import ROOT, routable
from discovery.consul_agent import ConsulAgent, find_consul, free_ports, plan_agents, ready, stop_all
from stoker_client import Client

STEP_MS = 20
MODEL = "bench"
Mode = Literal["relay", "direct"]
MODES: tuple[Mode, ...] = ("relay", "direct")
AT_ONCE = 64
IDLE_S = 2.0


@contextmanager
def processes(folder: Path) -> Iterator[tuple[str, int]]:
    """The router's address and its process id."""
    (plan,) = plan_agents(find_consul(ROOT), ("zone-a",))
    agent = ConsulAgent(plan, folder / "consul.log")
    agent.start()
    started: list[subprocess.Popen[bytes]] = []
    try:
        asyncio.run(ready([agent]))
        server_port, router_port = free_ports(2)
        common = ["--zone", "zone-a", "--consul-address", agent.config.http_address, "--metrics-port", "-1"]
        sim = ["--engine", "sim", "--model", MODEL, "--sim-step-base-ms", str(STEP_MS), "--sim-step-per-stream-ms", "0"]
        limits = ["--sim-max-streams", "1024", "--sim-max-batched-tokens", "8192", "--sim-kv-tokens", "4000000"]
        key = ["--ticket-key", "a key for a benchmark on one machine"]
        commands = (
            ["model_server", "--listen-port", str(server_port), *sim, *limits, *common, *key],
            ["router", "--listen-port", str(router_port), *common, *key],
        )
        for command in commands:
            with (folder / f"{command[0]}.log").open("wb") as out:
                started.append(subprocess.Popen([sys.executable, "-m", *command], stdout=out, stderr=out, cwd=ROOT))
        yield f"127.0.0.1:{router_port}", started[-1].pid
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(20)
        stop_all([agent])


async def idle_us_per_s(pid: int) -> float:
    """What the router uses with nothing to do: heartbeats, Consul."""
    before = used_s([pid])
    await asyncio.sleep(IDLE_S)
    return (used_s([pid]) - before) / IDLE_S * 1e6


async def per_token(
    address: str, pid: int, mode: Mode, streams: int, window_s: float, idle: float
) -> dict[str, float | str]:
    """While all streams run."""
    tokens = 0

    async def one(client: Client, i: int) -> None:
        nonlocal tokens
        length = int((window_s + 8) * 1000 / STEP_MS)
        async with client.stream(f"stream {i}", model=MODEL, max_tokens=length, ignore_eos=True) as stream:
            async for chunk in stream:
                tokens += len(chunk.token_ids)

    async with Client(address, mode=mode) as client:
        tasks = [asyncio.ensure_future(one(client, i)) for i in range(streams)]
        await asyncio.sleep(3.0)  # until all run: the window must be steady
        tokens, cpu_s, began_s = 0, used_s([pid]), time.monotonic()
        await asyncio.sleep(window_s)
        cpu_s, took_s, came = used_s([pid]) - cpu_s, time.monotonic() - began_s, tokens
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "mode": mode,
        "streams": streams,
        "of_paced": came / took_s / (streams * 1000 / STEP_MS),
        "router_us_per_s": cpu_s / took_s * 1e6,
        "router_us_per_token": (cpu_s * 1e6 - took_s * idle) / came,
    }


async def per_request(
    address: str, pid: int, mode: Mode, requests: int, tokens: int, idle: float
) -> dict[str, float | str]:
    """Short requests, some at a time."""
    left = iter(range(requests))

    async def some(client: Client) -> None:
        for i in left:
            await client.generate(f"request {i}", model=MODEL, max_tokens=tokens, ignore_eos=True)

    async with Client(address, mode=mode) as client:
        await client.generate("warm", model=MODEL, max_tokens=2)
        cpu_s, began_s = used_s([pid]), time.monotonic()
        await asyncio.gather(*(some(client) for _ in range(AT_ONCE)))
        await asyncio.sleep(0.5)  # what the server still tells of them
        cpu_s, took_s = used_s([pid]) - cpu_s, time.monotonic() - began_s
    return {
        "mode": mode,
        "requests": requests,
        "tokens": tokens,
        "router_us_per_request": (cpu_s * 1e6 - took_s * idle) / requests,
        "requests_per_s": requests / took_s,
    }


async def run(address: str, pid: int, streams: int, requests: int, rounds: int, window_s: float) -> None:
    """Print a line of JSON for each figure, modes in turn."""
    await routable(address)
    for number in range(rounds):
        idle = await idle_us_per_s(pid)
        print(json.dumps({"round": number, "idle_us_per_s": round(idle)}), flush=True)
        for mode in MODES:
            for figures in (
                await per_token(address, pid, mode, streams, window_s, idle),
                await per_request(address, pid, mode, requests, 64, idle),
            ):
                shown = {key: round(value, 2) if isinstance(value, float) else value for key, value in figures.items()}
                print(json.dumps({"round": number, **shown}), flush=True)


def main() -> None:
    """Parse, start, measure, stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--requests", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window-s", type=float, default=4.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, processes(Path(folder)) as (address, pid):
        uvloop.run(run(address, pid, given.streams, given.requests, given.rounds, given.window_s))


if __name__ == "__main__":
    main()
