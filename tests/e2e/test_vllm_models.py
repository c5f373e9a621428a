"""Two models on one server with real vLLM on the CPU: both answer, and loading one does not hold up the other."""

import asyncio
import sys
from itertools import pairwise
from pathlib import Path

import grpc.aio
import pytest

from discovery.consul_agent import free_ports
from stoker.v1 import endpoint_pb2, generation_pb2, inference_pb2, model_pb2, model_pb2_grpc, worker_link_pb2
from tests.e2e.test_vllm_server import MODEL, ROOT
from tests.fakes.inference import channel_to, stream, token_ids, unary
from tests.fakes.stopwatch import waited_s

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]

READY_WITHIN_S = 200.0
# A router calls a server dead after 2 s of silence, and heartbeats are due every 0.5 s.
LATEST_BEAT_S = 0.5
CONTROL_S = 3.0


def asked(model: str, max_tokens: int) -> generation_pb2.Generation:
    sampling = generation_pb2.Sampling(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    return generation_pb2.Generation(model=model, text="The capital of France is", sampling=sampling)


async def ready(channel: grpc.aio.Channel) -> None:
    """Wait until both models are hot."""
    models = model_pb2_grpc.ModelServiceStub(channel)
    async with asyncio.timeout(READY_WITHIN_S):
        while True:
            try:
                listed = await models.ListModels(model_pb2.ListModelsRequest(), timeout=5)
                assert [at.model.residency for at in listed.models] == [endpoint_pb2.RESIDENCY_HOT] * 2
                return
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            await asyncio.sleep(0.2)


async def answer(channel: grpc.aio.Channel, model: str) -> inference_pb2.GenerateResponse:
    return await unary(channel, asked(model, 8), timeout=60)


async def beats(channel: grpc.aio.Channel, server: int) -> list[float]:
    """How late each heartbeat was by the server's own word, less what that waited for a processor; until cancelled."""
    lags: list[float] = []
    before_s = waited_s(server)
    hello = worker_link_pb2.AttachRequest(hello=worker_link_pb2.Hello(link_version=1, router="test", zone="zone-a"))
    call = channel.stream_stream(
        "/stoker.v1.WorkerLinkService/Attach",
        request_serializer=worker_link_pb2.AttachRequest.SerializeToString,
        response_deserializer=worker_link_pb2.AttachResponse.FromString,
    )()
    try:
        await call.write(hello)
        while True:
            response = await call.read()
            assert isinstance(response, worker_link_pb2.AttachResponse)
            if response.HasField("heartbeat"):
                now_s = waited_s(server)
                lags.append(max(0.0, response.heartbeat.loop_lag.ToNanoseconds() / 1e9 - max(0.0, now_s - before_s)))
                before_s = now_s
    except asyncio.CancelledError:
        return lags
    finally:
        call.cancel()


async def test_two_models_answer_in_turn_and_at_once_and_one_loads_beside_the_others_streams(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "model_server", "--model", MODEL, "--model-name", "first", "--max-hot", "2"]
    command += ["--models", f"second={MODEL}", "--listen-port", str(port)]
    with (tmp_path / "server.log").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=output, stderr=output, cwd=ROOT, start_new_session=True
        )
    try:
        async with channel_to(f"127.0.0.1:{port}") as channel:
            await ready(channel)
            in_turn = [await answer(channel, model) for model in ("first", "second", "first", "second")]
            at_once = await asyncio.gather(*(answer(channel, model) for model in ("first", "second") for _ in range(4)))
            assert {tuple(each.outputs[0].token_ids) for each in (*in_turn, *at_once)} == {
                tuple(in_turn[0].outputs[0].token_ids)
            }, "they are the same model under two names"
            assert [each.started.model for each in at_once] == ["first"] * 4 + ["second"] * 4

            target = model_pb2.ModelTarget(model="second")
            models = model_pb2_grpc.ModelServiceStub(channel)
            slept = await models.SleepModel(model_pb2.SleepModelRequest(target=target), timeout=60)
            assert slept.model.residency == endpoint_pb2.RESIDENCY_STAGED, "there is no sleep on processors"
            assert slept.model.time_to_ready.ToMilliseconds() > 1000

            # What this machine itself makes late, without any load.
            async with asyncio.TaskGroup() as tasks:
                beating = tasks.create_task(beats(channel, process.pid))
                await answer(channel, "first")
                await asyncio.sleep(CONTROL_S)
                beating.cancel()
            control_s = max(beating.result())

            came: list[float] = []
            loop = asyncio.get_running_loop()

            async def read() -> None:
                async for part in stream(channel, asked("first", 1500)):
                    came.extend(loop.time() for _ in token_ids([part]))

            async with asyncio.TaskGroup() as tasks:
                beating = tasks.create_task(beats(channel, process.pid))
                reading = tasks.create_task(read())
                parts = [part async for part in stream(channel, asked("second", 4))]
                ready_at = loop.time()
                assert parts[0].HasField("progress") and parts[0].progress.HasField("remaining")
                assert len(token_ids(parts)) == 4
                assert sum(at < ready_at for at in came) > 20, "the other's stream went on meanwhile"
                reading.cancel()
                beating.cancel()
            lags, gap_s = beating.result(), max(after - before for before, after in pairwise(came))
            figures = f"latest heartbeat {max(lags):.3f} s of {len(lags)}, {control_s:.3f} s without a load"
            sys.stdout.write(f"{figures}; longest gap of the stream {gap_s:.3f} s\n")
            assert max(lags) < LATEST_BEAT_S + control_s, figures
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 60)
