"""What is left of the mesh at three times its load: `python -m bench.overload`, about two minutes.

Simulated servers of known capacity, a router, a Consul agent, each a process of its own; from here requests arrive at
random and wait for nobody (open loop), at 0.5 to 3 times what the servers can do. Goodput is what was answered whole
and within its deadline, counted at the moment of the answer, after a phase's first seconds. The generator tells its own
lag: how much later than planned it sent. Where that is not small against the figures, the figures say nothing.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import psutil
import uvloop

from bench.relay.systems import routable
from discovery.consul_agent import ConsulAgent, find_consul, free_ports, plan_agents, ready, stop_all
from stoker.v1 import generation_pb2, inference_pb2, inference_pb2_grpc
from stoker_common.channel import client_options
from stoker_common.status import from_rpc_error

ROOT = Path(__file__).resolve().parents[1]
MODEL = "bench"
SERVERS, STREAMS = 2, 16
STEP_MS, TOKENS = 20, 50
# What all servers can finish in a second: their places over the time one request takes.
CAPACITY_PER_S = SERVERS * STREAMS / (TOKENS * STEP_MS / 1000)
DEADLINE_S = 3.0
# At the beginning of a phase queues fill or empty: not counted.
SETTLE_S = 3.0
# Calm again: as quick as half load was, and half as much again.
CALM_FACTOR = 1.5


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's fate. Times in seconds from the run's beginning; `due_s` is when it should have been sent."""

    due_s: float
    sent_s: float
    ended_s: float
    outcome: str

    @property
    def took_s(self) -> float:
        """As its caller sees it: from when it was due."""
        return self.ended_s - self.due_s

    @property
    def good(self) -> bool:
        """Whether it was answered in time."""
        return self.outcome == "ok" and self.took_s <= DEADLINE_S


@contextmanager
def processes(folder: Path) -> Iterator[tuple[str, dict[str, psutil.Process]]]:
    """The router's address, and the processes."""
    (plan,) = plan_agents(find_consul(ROOT), ("zone-a",))
    agent = ConsulAgent(plan, folder / "consul.log")
    agent.start()
    asyncio.run(ready([agent]))
    *server_ports, router_port = free_ports(SERVERS + 1)
    common = ["--zone", "zone-a", "--consul-address", agent.config.http_address, "--metrics-port", "-1"]
    sim = ["--engine", "sim", "--model", MODEL, "--sim-step-base-ms", str(STEP_MS), "--sim-step-per-stream-ms", "0"]
    commands = {
        f"server-{i}": ["model_server", "--listen-port", str(port), *sim, "--sim-max-streams", str(STREAMS), *common]
        for i, port in enumerate(server_ports)
    }
    commands["router"] = ["router", "--listen-port", str(router_port), *common]
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, arguments in commands.items():
            with (folder / f"{name}.log").open("wb") as out:
                started[name] = subprocess.Popen([sys.executable, "-m", *arguments], stdout=out, stderr=out)
        yield f"127.0.0.1:{router_port}", {name: psutil.Process(each.pid) for name, each in started.items()}
    finally:
        for process in started.values():
            process.terminate()
        for process in started.values():
            process.wait(20)
        stop_all([agent])


class Generator:
    """Sends requests when they are due, whatever became of those before."""

    def __init__(self, channels: list[grpc.aio.Channel], rng: random.Random) -> None:
        self._stubs = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels]
        self._rng = rng
        self._began_s = time.monotonic()
        self._sent = 0

    def now_s(self) -> float:
        """Since the generator began."""
        return time.monotonic() - self._began_s

    async def phase(self, per_s: float, lasts_s: float) -> list[Answer]:
        """Requests at random moments, `per_s` on average, for so long; returns when the last one has ended."""
        due_s = self.now_s()
        until_s = due_s + lasts_s
        answers: list[asyncio.Task[Answer]] = []
        async with asyncio.TaskGroup() as tasks:
            while (due_s := due_s + self._rng.expovariate(per_s)) < until_s:
                await asyncio.sleep(due_s - self.now_s())
                answers.append(tasks.create_task(self._one(due_s)))
            await asyncio.sleep(until_s - self.now_s())
        return [each.result() for each in answers]

    async def _one(self, due_s: float) -> Answer:
        self._sent += 1
        generation = generation_pb2.Generation(
            model=MODEL,
            text=f"request {self._sent}",
            sampling=generation_pb2.Sampling(max_tokens=TOKENS, ignore_eos=True),
        )
        stub = self._stubs[self._sent % len(self._stubs)]
        sent_s, outcome = self.now_s(), "ok"
        try:
            await stub.Generate(inference_pb2.GenerateRequest(generation=generation), timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            outcome = from_rpc_error(error).reason
        return Answer(due_s, sent_s, self.now_s(), outcome)


def share(values: list[float], of: float) -> float:
    """A percentile: of 0.99 is the value that 99 % do not exceed. 0 of nothing."""
    return sorted(values)[min(len(values) - 1, int(len(values) * of))] if values else 0.0


def figures(load: float, began_s: float, lasts_s: float, answers: list[Answer]) -> dict[str, object]:
    """A phase in figures."""
    counted_from_s = began_s + SETTLE_S
    window_s = lasts_s - SETTLE_S
    good = [each for each in answers if each.good and counted_from_s <= each.ended_s <= began_s + lasts_s]
    refused = [each.took_s * 1e3 for each in answers if each.outcome in ("QUEUE_FULL", "WAIT_EXCEEDS_DEADLINE")]
    lag_ms = [(each.sent_s - each.due_s) * 1e3 for each in answers]
    served = [each.took_s for each in answers if each.outcome == "ok"]
    return {
        "load": load,
        "offered_per_s": round(len(answers) / lasts_s, 1),
        "goodput_per_s": round(len(good) / window_s, 1),
        "outcomes": dict(Counter(each.outcome for each in answers)),
        "served_p50_s": round(share(served, 0.5), 2),
        "served_p99_s": round(share(served, 0.99), 2),
        "refused_p50_ms": round(share(refused, 0.5), 1),
        "refused_p99_ms": round(share(refused, 0.99), 1),
        "longest_past_deadline_ms": round(max(0.0, max(each.took_s for each in answers) - DEADLINE_S) * 1e3, 1),
        "generator_lag_p99_ms": round(share(lag_ms, 0.99), 1),
        "generator_lag_max_ms": round(max(lag_ms), 1),
        "machine_load": round(os.getloadavg()[0], 1),
    }


async def run(address: str, watched: dict[str, psutil.Process], loads: list[float], phase_s: float) -> None:
    """Print one line of JSON for each load, and what it comes to."""
    await routable(address)
    channels = [grpc.aio.insecure_channel(address, options=[*client_options(), _own(i)]) for i in range(4)]
    # A seed whose phases come within 4 % of their load: chance alone strays by 10.
    generator = Generator(channels, random.Random(29))
    watched = {**watched, "generator": psutil.Process()}
    await generator.phase(CAPACITY_PER_S * 0.5, 3.0)  # the router learns how long requests take
    goodput: dict[float, float] = {}
    calm_s = 0.0
    worst: dict[str, object] = {}
    for load in loads:
        cpu = {name: sum(process.cpu_times()[:2]) for name, process in watched.items()}
        began_s = generator.now_s()
        if load == max(loads):
            overload = asyncio.ensure_future(generator.phase(CAPACITY_PER_S * load, phase_s))
            await asyncio.sleep(phase_s)
            ended_s = generator.now_s()
            after = await generator.phase(CAPACITY_PER_S * 0.5, 10.0)
            answers = await overload
            late = [each.due_s - ended_s for each in after if not each.good or each.took_s > calm_s * CALM_FACTOR]
            worst = {"calm_again_after_s": round(max(late, default=0.0), 2), "refused_after": _refused(after)}
        else:
            answers = await generator.phase(CAPACITY_PER_S * load, phase_s)
        told = figures(load, began_s, phase_s, answers)
        spent_s = generator.now_s() - began_s
        told["cpu"] = {
            name: round((sum(process.cpu_times()[:2]) - cpu[name]) / spent_s, 2) for name, process in watched.items()
        }
        goodput[load] = float(str(told["goodput_per_s"]))
        calm_s = calm_s or float(str(told["served_p99_s"]))
        print(json.dumps(told), flush=True)
    peak = max(goodput.values())
    print(
        json.dumps(
            {
                "capacity_per_s": CAPACITY_PER_S,
                "peak_goodput_per_s": peak,
                "goodput_at_most_load_of_peak": round(goodput[max(loads)] / peak, 3),
                **worst,
            }
        )
    )
    for channel in channels:
        await channel.close()


def _refused(answers: list[Answer]) -> int:
    return sum(each.outcome != "ok" for each in answers)


def _own(i: int) -> tuple[str, int]:
    """Channels with equal arguments share a connection; this makes them differ."""
    return ("stoker.bench.channel", i)


def main() -> None:
    """Parse, start, measure, stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loads", nargs="*", type=float, default=[0.5, 1.0, 1.5, 2.0, 3.0])
    parser.add_argument("--phase-s", type=float, default=13.0)
    parser.add_argument("--logs", type=Path, help="existing folder for the processes' logs; default: none are kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, processes(arguments.logs or Path(folder)) as (address, watched):
        uvloop.run(run(address, watched, sorted(arguments.loads), arguments.phase_s))


if __name__ == "__main__":
    main()
