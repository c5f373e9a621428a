"""Real vLLM under faults: `python -m bench.faults_vllm --kills 5 --cuts 25` writes what came of every stream.

Two vLLM servers on this machine's processor behind a router, each a process of its own, in one zone with its Consul.
Eight streams of eight kinds are in flight when a server is killed (SIGKILL; a supervisor's part is played here) or its
connections are cut. Each stream is compared with an unfaulted control of the same kind, where the control repeats.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc.aio

from discovery.consul_agent import ConsulAgent, find_consul, free_ports, plan_agents, ready, stop_all
from stoker.v1 import endpoint_pb2, generation_pb2, inference_pb2, inference_pb2_grpc, router_pb2, router_pb2_grpc
from stoker_common.channel import client_options

ROOT = Path(__file__).resolve().parents[1]
MODEL = Path(os.environ.get("STOKER_MODEL") or ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct")
TOKENS = 72
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
    "required": ["name", "age", "city"],
}
LIGHTHOUSE = "Write a short story about a lighthouse keeper."
Sampling = generation_pb2.Sampling


def kinds() -> dict[str, generation_pb2.Generation]:
    """One request of each kind."""

    def request(prompt: str, **sampling: object) -> generation_pb2.Generation:
        message = generation_pb2.ChatMessage(role="user", content=[generation_pb2.ContentPart(text=prompt)])
        options = {"max_tokens": TOKENS, "ignore_eos": True, **sampling}
        return generation_pb2.Generation(
            model=MODEL.name,
            chat=generation_pb2.Chat(messages=[message]),
            sampling=Sampling(**options),  # type: ignore[arg-type]
        )

    person = request("Describe a person as JSON with name, age and city.", temperature=0, ignore_eos=False)
    person.structured_output.json_schema = json.dumps(SCHEMA)
    return {
        "greedy": request(LIGHTHOUSE, temperature=0),
        "seeded": request(LIGHTHOUSE, temperature=0.9, seed=42),
        "seeded top-p": request(LIGHTHOUSE, temperature=0.8, top_p=0.9, top_k=40, seed=7),
        "penalties": request(
            LIGHTHOUSE, temperature=0, frequency_penalty=1.0, presence_penalty=0.5, repetition_penalty=1.2
        ),
        "json schema": person,
        "stop string": request("Count from one to one hundred in words.", temperature=0, stop=["twenty-one", "####"]),
        "chinese": request("请用中文写一个关于海的短故事。", temperature=0.7, seed=3),
        "emoji": request("Answer only with emoji: 🌊🐟🚢 ...", temperature=0.7, seed=5),
    }


@dataclass
class Came:
    """What came of one stream."""

    ids: list[int]
    text: str
    finish: int
    longest_gap_s: float
    usage_tokens: int
    attempts: list[str]
    modes: list[str]
    exactness: str
    error: str = ""


async def follow(
    channel: grpc.aio.Channel, asked: generation_pb2.Generation, progress: dict[str, int], name: str
) -> Came:
    """One stream, to its end."""
    came = Came([], "", 0, 0.0, 0, [], [], "")
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    last_s: float | None = None
    try:
        async for part in stub.GenerateStream(inference_pb2.GenerateStreamRequest(generation=asked), timeout=240):
            for delta in part.deltas:
                if delta.token_ids:
                    now_s = time.monotonic()
                    came.longest_gap_s = max(came.longest_gap_s, now_s - (last_s or now_s))
                    last_s = now_s
                came.ids += delta.token_ids
                came.text += delta.text
                came.finish = delta.finish_reason or came.finish
            progress[name] = len(came.ids)
            if part.HasField("finished"):
                came.usage_tokens = part.finished.usage.completion_tokens
                came.attempts = [attempt.server for attempt in part.finished.attempts]
                came.modes = [endpoint_pb2.ResumeMode.Name(each.resume_mode) for each in part.finished.attempts[1:]]
                came.exactness = inference_pb2.Exactness.Name(part.finished.exactness)
    except grpc.aio.AioRpcError as error:
        came.error = f"{error.code().name}: {error.details()}"
    return came


class Cuttable:
    """A TCP proxy in front of a server, whose connections can be cut."""

    def __init__(self, port: int, behind: int) -> None:
        self._port, self._behind = port, behind
        self._open: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve for as long as the block runs."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", self._port)
        try:
            yield
        finally:
            server.close()
            self.cut()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in tuple(self._open):
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._behind)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, there_writer}
        try:
            await asyncio.gather(self._pump(reader, there_writer), self._pump(there_reader, writer))
        finally:
            self._open -= {writer, there_writer}
            writer.transport.abort()
            there_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except (OSError, asyncio.CancelledError):
            return  # cut, or the proxy is ended
        finally:
            writer.transport.abort()


class Server:
    """A vLLM server, started again when it ended."""

    def __init__(self, name: str, consul: str, folder: Path) -> None:
        self.name = name
        self._port, front = free_ports(2)
        self.proxy = Cuttable(front, self._port)
        self._command = [
            *(sys.executable, "-m", "model_server", "--engine", "vllm", "--model", str(MODEL), "--server-id", name),
            *("--listen-port", str(self._port), "--advertise-address", f"127.0.0.1:{front}"),
            *("--consul-address", consul, "--zone", "zone-a"),
        ]
        self._log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """A new life."""
        with self._log.open("ab") as out:
            self.process = subprocess.Popen(self._command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


async def both_alive(channel: grpc.aio.Channel, within_s: float = 200.0) -> None:
    """Wait until the router would choose either server."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                status = await router_pb2_grpc.RouterServiceStub(channel).Status(router_pb2.StatusRequest(), timeout=2)
                usable = [each for zone in status.zones for each in zone.endpoints if not each.excluded_by]
                if len({each.endpoint.server for each in usable}) == 2:
                    return
            except grpc.aio.AioRpcError:
                pass  # the router is starting
            await asyncio.sleep(0.2)


async def trial(
    channel: grpc.aio.Channel, fault: str, servers: dict[str, Server], rng: random.Random
) -> tuple[str, dict[str, Came]]:
    """All kinds at once, with the fault when each has got some tokens. Returns who was hit, and what came."""
    progress: dict[str, int] = {}
    asked = kinds()
    streams = {name: asyncio.ensure_future(follow(channel, each, progress, name)) for name, each in asked.items()}
    hit = ""
    if fault != "none":
        least = rng.randint(3, 20)
        async with asyncio.timeout(120):
            while sum(count >= least for count in progress.values()) < len(asked) - 2:  # noqa: ASYNC110 - counters
                await asyncio.sleep(0.01)
        hit = rng.choice(sorted(servers))
        if fault == "kill":
            servers[hit].kill()
        else:
            servers[hit].proxy.cut()
    came = {name: await stream for name, stream in streams.items()}
    if fault == "kill":
        servers[hit].start()
    return hit, came


async def run(kills: int, cuts: int, out: Path, seed: int) -> None:
    """All trials, into `out`, one JSON object a line."""
    rng = random.Random(seed)
    async with AsyncExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        (plan,) = plan_agents(find_consul(ROOT), ("zone-a",))
        agent = ConsulAgent(plan, folder / "consul.log")
        agent.start()
        held.callback(stop_all, [agent])
        await ready([agent])
        servers = {name: Server(name, agent.config.http_address, folder) for name in ("vllm-1", "vllm-2")}
        for server in servers.values():
            await held.enter_async_context(server.proxy.serving())
            server.start()
            held.callback(server.stop)
        (port,) = free_ports(1)
        with (folder / "router.log").open("wb") as log:
            flags = ["--zone", "zone-a", "--listen-port", str(port), "--metrics-port", "-1"]
            command = [sys.executable, "-m", "router", *flags, "--consul-address", agent.config.http_address]
            router = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)  # noqa: ASYNC220 - at once
        held.callback(router.wait)
        held.callback(router.terminate)
        channel = await held.enter_async_context(
            grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=client_options())
        )
        await both_alive(channel)
        print("both servers are up", flush=True)
        controls = [(await trial(channel, "none", servers, rng))[1] for _ in range(3)]
        repeats = {name: all(each[name].ids == controls[0][name].ids for each in controls) for name in controls[0]}
        print("the control repeats:", json.dumps(repeats), flush=True)
        with out.open("w", encoding="utf-8") as file:
            for number, fault in enumerate(["kill"] * kills + ["cut"] * cuts):
                await both_alive(channel)
                hit, came = await trial(channel, fault, servers, rng)
                for name, each in came.items():
                    row = asdict(each) | {
                        "trial": number,
                        "fault": fault,
                        "hit": hit,
                        "kind": name,
                        "control_repeats": repeats[name],
                        "ids_as_control": each.ids == controls[0][name].ids,
                        "text_as_control": each.text == controls[0][name].text,
                        "usage_right": each.usage_tokens == len(each.ids),
                    }
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                moved = [name for name, each in came.items() if len(each.attempts) > 1]
                failed = [f"{name}: {each.error}" for name, each in came.items() if each.error]
                print(f"trial {number} {fault} {hit}: resumed {len(moved)}, failed {failed}", flush=True)


def report(rows: list[dict[str, object]]) -> str:
    """The rows as a table: by fault and kind."""
    lines = ["| fault | kind | streams | resumed | modes | failed | ids as control | control repeats | longest gap |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for fault in dict.fromkeys(str(row["fault"]) for row in rows):
        for kind in dict.fromkeys(str(row["kind"]) for row in rows):
            mine = [row for row in rows if row["fault"] == fault and row["kind"] == kind]
            resumed = [row for row in mine if len(row["attempts"]) > 1]  # type: ignore[arg-type]
            modes = sorted({mode.removeprefix("RESUME_MODE_").lower() for row in resumed for mode in row["modes"]})  # type: ignore[attr-defined]
            gap = max((float(str(row["longest_gap_s"])) for row in resumed), default=0.0)
            same = sum(bool(row["ids_as_control"] and row["text_as_control"]) for row in resumed)
            lines.append(
                f"| {fault} | {kind} | {len(mine)} | {len(resumed)} | {', '.join(modes)} "
                f"| {sum(bool(row['error']) for row in mine)} | {same} of {len(resumed)} "
                f"| {'yes' if mine[0]['control_repeats'] else 'no'} | {gap:.1f} s |"
            )
    return "\n".join(lines)


def main() -> None:
    """Parse, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--cuts", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("bench/results/faults_vllm.jsonl"))
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    asyncio.run(run(arguments.kills, arguments.cuts, arguments.out, arguments.seed))
    rows = [json.loads(line) for line in arguments.out.read_text(encoding="utf-8").splitlines()]
    print(report(rows))


if __name__ == "__main__":
    main()
