"""What a relayed token costs the router in CPU, with paced streams: `python -m bench.relay_cost 64 256`.

Starts a Consul agent, a simulated server that makes a token of each stream every 20 ms, and a router, each a process of
its own; streams from here with plain stubs; reads the processes' CPU from the operating system over a steady window.
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

import grpc.aio
import psutil
import uvloop

from discovery.consul_agent import ConsulAgent, find_consul, free_ports, plan_agents, ready, stop_all
from stoker.v1 import generation_pb2, inference_pb2, router_pb2, router_pb2_grpc
from stoker_common.channel import client_options

ROOT = Path(__file__).resolve().parents[1]
STEP_MS = 20
MODEL = "bench"


@contextmanager
def processes(folder: Path) -> Iterator[dict[str, psutil.Process | str]]:
    """The router, the server, and the router's address."""
    (plan,) = plan_agents(find_consul(ROOT), ("zone-a",))
    agent = ConsulAgent(plan, folder / "consul.log")
    agent.start()
    asyncio.run(ready([agent]))
    server_port, router_port = free_ports(2)
    common = ["--zone", "zone-a", "--consul-address", agent.config.http_address, "--metrics-port", "-1"]
    sim = ["--engine", "sim", "--model", MODEL, "--sim-step-base-ms", str(STEP_MS), "--sim-step-per-stream-ms", "0"]
    limits = ["--sim-max-streams", "1024", "--sim-max-batched-tokens", "8192", "--sim-kv-tokens", "4000000"]
    commands = {
        "server": ["model_server", "--listen-port", str(server_port), *sim, *limits, *common],
        "router": ["router", "--listen-port", str(router_port), *common],
    }
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, arguments in commands.items():
            with (folder / f"{name}.log").open("wb") as out:
                started[name] = subprocess.Popen([sys.executable, "-m", *arguments], stdout=out, stderr=out)
        yield {
            "router": psutil.Process(started["router"].pid),
            "server": psutil.Process(started["server"].pid),
            "address": f"127.0.0.1:{router_port}",
        }
    finally:
        for process in started.values():
            process.terminate()
        for process in started.values():
            process.wait(20)
        stop_all([agent])


async def until_routable(address: str) -> None:
    """Wait until the router lists the server."""
    async with grpc.aio.insecure_channel(address, options=client_options()) as channel, asyncio.timeout(30):
        while True:
            try:
                status = await router_pb2_grpc.RouterServiceStub(channel).Status(router_pb2.StatusRequest(), timeout=1)
            except grpc.aio.AioRpcError:
                status = router_pb2.StatusResponse()
            if any(zone.endpoints for zone in status.zones):
                return
            await asyncio.sleep(0.1)


async def measure(address: str, watched: dict[str, psutil.Process], streams: int, window_s: float) -> dict[str, float]:
    """CPU of each process per token, in us, over a window in which all streams run."""
    tokens = messages = 0

    async def one(channel: grpc.aio.Channel, i: int) -> None:
        nonlocal tokens, messages
        generation = generation_pb2.Generation(
            model=MODEL,
            text=f"stream {i}",
            sampling=generation_pb2.Sampling(max_tokens=int((window_s + 6) * 1000 / STEP_MS), ignore_eos=True),
        )
        request = inference_pb2.GenerateStreamRequest(generation=generation).SerializeToString()
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
            "/stoker.v1.InferenceService/GenerateStream"
        )
        call = method(request)
        try:
            async for data in call:
                messages += 1
                tokens += sum(len(d.token_ids) for d in inference_pb2.GenerateStreamResponse.FromString(data).deltas)
        finally:
            call.cancel()

    # A channel for each eight streams, as eight applications would have.
    channels = [grpc.aio.insecure_channel(address, options=client_options()) for _ in range(max(1, streams // 8))]
    tasks = [asyncio.ensure_future(one(channels[i % len(channels)], i)) for i in range(streams)]
    await asyncio.sleep(3.0)  # until all run: the window must be steady
    before = {name: sum(process.cpu_times()[:2]) for name, process in watched.items()}
    tokens_before, messages_before, began = tokens, messages, time.monotonic()
    await asyncio.sleep(window_s)
    cpu = {name: sum(process.cpu_times()[:2]) - before[name] for name, process in watched.items()}
    came, parts, took_s = tokens - tokens_before, messages - messages_before, time.monotonic() - began
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for channel in channels:
        await channel.close()
    return {
        "streams": streams,
        "tokens_per_s": round(came / took_s),
        "of_paced": round(came / took_s / (streams * 1000 / STEP_MS), 3),
        "messages_per_token": round(parts / came, 3),
        **{f"{name}_us_per_token": round(spent / came * 1e6, 1) for name, spent in cpu.items()},
    }


async def run(address: str, watched: dict[str, psutil.Process], counts: list[int], window_s: float) -> None:
    """Print one line of JSON for each count of streams."""
    await until_routable(address)
    for streams in counts:
        print(json.dumps(await measure(address, watched, streams, window_s)), flush=True)


def main() -> None:
    """Parse, start, measure, stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("streams", nargs="*", type=int, default=[64, 256])
    parser.add_argument("--window-s", type=float, default=8.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, processes(Path(folder)) as up:
        watched = {name: process for name, process in up.items() if isinstance(process, psutil.Process)}
        uvloop.run(run(str(up["address"]), watched, arguments.streams, arguments.window_s))


if __name__ == "__main__":
    main()
