"""`python -m model_server` as an operator runs it: a real process, real signals, exit codes."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from tests.fakes.inference import channel_to, error_details, generation, rest, stream, unary

pytestmark = pytest.mark.integration

MODEL = "SmolLM2-135M-Instruct"
_START_WITHIN_S = 30.0


class ServerProcess:
    """A server's process and its log so far."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []

    async def wait_for(self, message: str) -> dict[str, Any]:
        """Read the log up to a line with this message. Raises AssertionError if the process ends before."""
        assert self.process.stdout is not None
        async with asyncio.timeout(_START_WITHIN_S):
            while line := await self.process.stdout.readline():
                self.lines.append(json.loads(line))
                if self.lines[-1]["message"] == message:
                    return self.lines[-1]
        raise AssertionError(f"the process ended without {message!r}: {self.lines}")

    async def ended(self, within_s: float = 10.0) -> int:
        """The exit code."""
        async with asyncio.timeout(within_s):
            return await self.process.wait()


@asynccontextmanager
async def server_process(folder: Path, *flags: str) -> AsyncIterator[ServerProcess]:
    """A server with the simulator; killed after the block if it still runs."""
    command = (sys.executable, "-m", "model_server", "--engine", "sim", "--sim-load-ms", "0", *flags)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=PIPE, cwd=folder, env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    )
    try:
        yield ServerProcess(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_sigterm_finishes_what_runs_and_exits_with_0_and_the_port_can_be_had_again(tmp_path: Path) -> None:
    async with server_process(tmp_path) as first:
        address = (await first.wait_for("serving"))["address"]
        async with channel_to(address) as channel:
            call = stream(channel, generation(model=MODEL, max_tokens=100))
            await call.read()
            first.process.send_signal(signal.SIGTERM)
            await first.wait_for("draining")
            assert (await rest(call))[-1].HasField("finished")
        assert await first.ended() == 0
    async with server_process(tmp_path, "--listen-port", address.rpartition(":")[2]) as second:
        assert (await second.wait_for("serving"))["address"] == address
        async with channel_to(address) as channel:
            assert (await unary(channel, generation(model=MODEL, max_tokens=1))).outputs


async def test_a_stuck_engine_fails_its_streams_and_exits_with_1(tmp_path: Path) -> None:
    faults = tmp_path / "faults.json"
    flags = ("--sim-faults-file", str(faults), "--stuck-after-seconds", "0.5")
    async with server_process(tmp_path, *flags) as server:
        address = (await server.wait_for("serving"))["address"]
        async with channel_to(address) as channel:
            call = stream(channel, generation(model=MODEL, max_tokens=5000))
            await call.read()
            (tmp_path / "new").write_text('{"stall": true}', encoding="utf-8")
            (tmp_path / "new").rename(faults)
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await rest(call)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert error_details(failed.value)[0] == "ENGINE_STUCK"
        assert await server.ended() == 1


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with server_process(tmp_path, "--drain-seconds", "60") as server:
        address = (await server.wait_for("serving"))["address"]
        async with channel_to(address) as channel:
            call = stream(channel, generation(model=MODEL, max_tokens=8000))
            await call.read()
            server.process.send_signal(signal.SIGTERM)
            await server.wait_for("draining")
            server.process.send_signal(signal.SIGINT)
            assert await server.ended(5.0) == 0
            call.cancel()


async def test_its_log_tells_of_each_request_by_id_and_never_what_it_said(tmp_path: Path) -> None:
    async with server_process(tmp_path) as server:
        address = (await server.wait_for("serving"))["address"]
        asked = generation("swordfish marmalade", model=MODEL, max_tokens=3)
        asked.request_id = "req-77"
        async with channel_to(address) as channel:
            await unary(channel, asked)
        line = await server.wait_for("request ended")
        assert line["request_id"] == "req-77" and line["completion_tokens"] == 3
        server.process.send_signal(signal.SIGTERM)
        await server.ended()
        assert "swordfish" not in json.dumps(server.lines)


async def test_metrics_are_served(tmp_path: Path) -> None:
    async with server_process(tmp_path, "--metrics-port", "0") as server:
        port = (await server.wait_for("serving metrics"))["port"]
        await server.wait_for("serving")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        assert 'stoker_server_state{state="serving"} 1.0' in text
        assert "stoker_engine_running 0.0" in text


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--drain-seconds", "-1"), "drain_seconds"),
        (("--listen-host", "0.0.0.0"), "advertise_address"),
        (("--sim-max-batched-tokens", "8"), "max_batched_tokens"),
        (("--no-such-flag", "1"), "no-such-flag"),
    ],
)
async def test_wrong_settings_are_named_and_exit_with_2(flags: tuple[str, ...], named: str, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "model_server", "--engine", "sim", *flags, stderr=PIPE, cwd=tmp_path
    )
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert named in errors.decode()
