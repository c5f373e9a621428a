"""What a router knows that was just started again: `python -m bench.warm.restart`.

Consul, simulated servers and two routers, each a process of its own. Conversations are held through both. Then one
router is killed and started again; the next turns of half of the conversations are its first requests, those of the
other half go through the router that stayed, in turn with them. Nothing names a session: what is known of the prompts
alone decides. If servers did not announce their caches anew, it would find one prompt's in `--servers`, by chance.
"""

import argparse
import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.faults_vllm.mesh import Mesh, ServerKind, running
from stoker_client import Client, StokerError
from stoker_client.options import Turn

_MODEL = "sim"
_FLAGS = ("--engine", "sim", "--model-name", _MODEL, "--sim-max-model-tokens", "32768", "--sim-kv-tokens", "1000000")
_SAID = "the boilers are hot and the lamps are lit; "
_STARTED_WITHIN_S = 60.0


@dataclass
class Share:
    """Tokens of prompts, and those of them that were cached or that the router expected to be."""

    requests: int = 0
    prompt: int = 0
    cached: int = 0
    expected: int = 0

    def __str__(self) -> str:
        """As a row of the table."""
        return f"{self.requests} | {self.cached / self.prompt:.1%} | {self.expected / self.prompt:.1%}"


class Conversations:
    """Chats that go on through whichever router is asked."""

    def __init__(self, count: int) -> None:
        self._said = [[Turn(role="user", content=f"{number}: {_SAID * 40}")] for number in range(count)]

    async def turn(self, client: Client, number: int, share: Share) -> None:
        """One more turn of one of them."""
        answer = await client.generate(model=_MODEL, messages=self._said[number], max_tokens=20, timeout_s=60.0)
        self._said[number] += [
            Turn(role="assistant", content=answer.text),
            Turn(role="user", content=f"and then, {number}?"),
        ]
        share.requests += 1
        share.prompt += answer.response.started.prompt_tokens
        share.cached += answer.response.started.cached_tokens
        share.expected += answer.response.started.pick.cached_tokens


async def attached(client: Client, servers: int) -> float:
    """How long it takes from now until the router would choose so many servers, s. Raises TimeoutError."""
    began_s = time.monotonic()
    async with asyncio.timeout(_STARTED_WITHIN_S):
        while True:
            try:
                status = await client.status()
                if sum(not each.excluded_by for zone in status.zones for each in zone.endpoints) >= servers:
                    return time.monotonic() - began_s
            except StokerError:
                pass  # it is starting
            await asyncio.sleep(0.01)


async def measure(mesh: Mesh, servers: int, requests: int) -> str:
    """The table."""
    async with Client(mesh.routers["stayed"]) as stayed, Client(mesh.routers["restarted"]) as restarted:
        for client in (stayed, restarted):
            await attached(client, servers)
        talk, before = Conversations(2 * requests), Share()
        for number in range(2 * requests):
            await talk.turn((stayed, restarted)[number % 2], number, before)
        process = mesh.processes["restarted"]
        process.kill()
        process.start()
        took_s = await attached(restarted, servers)
        first, others = Share(), Share()
        for number in range(0, 2 * requests, 2):
            await talk.turn(restarted, number, first)
            await talk.turn(stayed, number + 1, others)
    rows = [
        f"Answers again {took_s:.2f} s after it was killed.",
        "",
        "| router | requests | cached | expected by the router |",
        "| --- | --- | --- | --- |",
        f"| restarted: its first requests | {first} |",
        f"| stayed | {others} |",
    ]
    return "\n".join(rows)


async def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.warm.restart", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--servers", type=int, default=4)
    parser.add_argument("--requests", type=int, default=100, help="first requests of the restarted router")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kind = ServerKind(Path(_MODEL), _FLAGS, cuttable=False)
        names = [f"sim-{number}" for number in range(1, options.servers + 1)]
        async with running(kind, names, Path(folder), {"stayed": (), "restarted": ()}) as mesh:
            print(await measure(mesh, options.servers, options.requests))


if __name__ == "__main__":
    asyncio.run(main())
