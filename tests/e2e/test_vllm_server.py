"""A model server with real vLLM, as a process of its own: killed, its engine killed, and started again on its port."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc.aio
import psutil
import pytest

from discovery.consul_agent import free_ports
from stoker.v1 import generation_pb2
from tests.fakes.inference import channel_to, error_details, generation, rest, stream, unary
from tests.fakes.stopwatch import Stopwatch

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
MODEL = os.environ.get("STOKER_MODEL") or str(ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct")
READY_WITHIN_S = 150


@contextmanager
def server(port: int, log: Path) -> Iterator[psutil.Process]:
    """One life of the server. Ended, if it still lives, when the block ends."""
    command = [sys.executable, "-m", "model_server", "--model", MODEL, "--listen-port", str(port)]
    with log.open("ab") as output:
        # A session of its own, as a supervisor would start it.
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, start_new_session=True)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def answer(port: int) -> str:
    """What it says, as soon as it serves."""
    asked = generation_pb2.Generation(
        model=Path(MODEL).name,
        text="The capital of France is",
        sampling=generation_pb2.Sampling(temperature=0, max_tokens=4),
    )
    async with asyncio.timeout(READY_WITHIN_S):
        while True:
            try:
                async with channel_to(f"127.0.0.1:{port}") as channel:
                    return (await unary(channel, asked, timeout=30)).outputs[0].text
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            await asyncio.sleep(0.2)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still hold anything: who inherits an orphan may take his time to reap it."""
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


async def test_a_killed_server_takes_its_engine_along_and_its_next_life_serves_on_its_port(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    log = tmp_path / "server.log"
    with server(port, log) as first:
        said = await answer(port)
        engine = first.children(recursive=True)
        assert any("resource_tracker" not in " ".join(each.cmdline()) for each in engine), "no engine process"
        first.send_signal(signal.SIGKILL)
        _, left = await asyncio.to_thread(psutil.wait_procs, engine, 2.0)
        assert alive(left) == []
    with server(port, log) as second:
        assert await answer(port) == said
        engine = second.children(recursive=True)
    _, left = await asyncio.to_thread(psutil.wait_procs, engine, 2.0)
    assert alive(left) == [], "SIGTERM left a process of the engine"


async def test_a_killed_engine_is_told_of_within_a_second_and_its_server_leaves_for_the_next_life(
    tmp_path: Path,
) -> None:
    (port,) = free_ports(1)
    log = tmp_path / "server.log"
    with server(port, log) as first:
        said = await answer(port)
        (engine,) = [each for each in first.children() if "resource_tracker" not in " ".join(each.cmdline())]
        async with channel_to(f"127.0.0.1:{port}") as channel:
            asked = generation("Count: one, two,", model=Path(MODEL).name, max_tokens=2000, ignore_eos=True)
            calls = [stream(channel, asked) for _ in range(4)]
            for call in calls:
                await call.read()
            engine.kill()
            watch = Stopwatch()
            for call in calls:
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await rest(call)
                assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
                assert error_details(failed.value)[0] == "ENGINE_DEAD"
            assert watch.s < 1.0
        # For whoever supervises it: a fresh process is better than one without an engine.
        assert await asyncio.to_thread(first.wait, 30.0) == 1
    with server(port, log):
        assert await answer(port) == said
