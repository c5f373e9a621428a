"""A client process with many streams, on plain stubs; it writes the history.

When its router is gone it goes on through the next one with the request's resume field, as docs/plain-stubs.md says.
With `--sdk` the SDK does so. With `--control` it is what gRPC alone offers instead: round robin straight to the
servers, with gRPC's own retries. With `--unread` it asks for much and reads only the first part of each answer.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import grpc
import grpc.aio

from stoker.v1 import generation_pb2, inference_pb2, inference_pb2_grpc
from stoker_client import Client as Sdk
from stoker_client.errors import StokerError
from stoker_client.options import Options as Sampling
from stoker_common.channel import Options, client_options
from stoker_common.status import from_rpc_error
from tests.chaos.history import Asked, Broke, Ended, Got, note
from tests.chaos.script import MODEL, Ask, Load, script

_AGAIN_AFTER_S = 0.1

_RETRY = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}


def control_options() -> Options:
    """The same keepalive as ours, and what gRPC itself has against faults."""
    replaced: dict[str, str | int] = {"grpc.enable_retries": 1, "grpc.service_config": json.dumps(_RETRY)}
    dropped = {*replaced, "grpc.service_config_disable_resolution"}
    return [option for option in client_options() if option[0] not in dropped] + list(replaced.items())


class Client:
    """All streams of one process. With `sdk` it asks that, else the channels by plain stubs."""

    def __init__(
        self,
        channels: Sequence[tuple[str, grpc.aio.Channel]],
        file: TextIO,
        deadline_s: float,
        sdk: Sdk | None = None,
    ) -> None:
        self._channels = channels
        self._file = file
        self._deadline_s = deadline_s
        self._sdk = sdk

    async def run(self, asks: Sequence[Ask]) -> None:
        """Ask everything, each at its time; returns when all have ended."""
        async with asyncio.TaskGroup() as tasks:
            for ask in asks:
                tasks.create_task(self._stream(ask))

    async def leave_unread(self, asks: Sequence[Ask]) -> None:
        """Ask for more than fits any window, read the first part of each answer, and wait to be killed."""
        calls = []
        stub = inference_pb2_grpc.InferenceServiceStub(self._channels[0][1])
        for ask in asks:
            generation = ask.generation()
            generation.sampling.n, generation.sampling.logprobs, generation.sampling.max_tokens = 8, 20, 1000
            generation.sampling.temperature = 0.8
            call = stub.GenerateStream(inference_pb2.GenerateStreamRequest(generation=generation))
            await call.read()
            calls.append(call)
        await asyncio.Event().wait()

    async def _stream(self, ask: Ask) -> None:
        await asyncio.sleep(ask.start_s)
        note(self._file, Asked(ask.name, time.monotonic()))
        if self._sdk is not None:
            await self._by_sdk(self._sdk, ask)
            return
        received = Received()
        ends_s = time.monotonic() + self._deadline_s
        turn = 0
        while True:
            router, channel = self._channels[turn % len(self._channels)]
            request = inference_pb2.GenerateStreamRequest(generation=received.rest_of(ask.generation()))
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            call = stub.GenerateStream(request, timeout=max(0.001, ends_s - time.monotonic()))
            try:
                async for part in call:
                    self._note(ask, received, part)
                return
            except grpc.aio.AioRpcError as error:
                refusal = from_rpc_error(error)
                # A router that says why has decided; one that says nothing (the code is all there is) is gone.
                again = (
                    refusal.reason in ("", error.code().name) and len(self._channels) > 1 and time.monotonic() < ends_s
                )
                code, said = error.code().name, error.details() or ""
                note(self._file, Broke(ask.name, time.monotonic(), router, code, refusal.reason, said, again))
                if not again:
                    return
            finally:
                call.cancel()
            turn += 1
            # Both gone at once is a moment; asking again without a pause would be a flood.
            await asyncio.sleep(_AGAIN_AFTER_S if turn > 1 else 0)

    async def _by_sdk(self, sdk: Sdk, ask: Ask) -> None:
        received = Received()
        sampling: Sampling = {"max_tokens": ask.max_tokens}
        if ask.seed is not None:
            sampling |= {"seed": ask.seed, "temperature": 0.8}
        try:
            async with sdk.stream(ask.prompt, model=MODEL, **sampling) as chunks:
                async for chunk in chunks:
                    self._note(ask, received, chunk.response)
        except StokerError as error:
            note(self._file, Broke(ask.name, time.monotonic(), "sdk", error.code.name, error.reason, str(error), False))

    def _note(self, ask: Ask, received: "Received", part: inference_pb2.GenerateStreamResponse) -> None:
        now_s = time.monotonic()
        at = len(received.token_ids)
        ids, text = received.take(part)
        if ids or text:
            note(self._file, Got(ask.name, now_s, at, ids, text, received.server, received.epoch))
        if part.HasField("finished"):
            ended = part.finished
            attempts = [[each.server, each.epoch, each.code, each.tokens] for each in ended.attempts]
            exactness = inference_pb2.Exactness.Name(ended.exactness)
            note(self._file, Ended(ask.name, now_s, ended.usage.completion_tokens, exactness, attempts))


class Received:
    """What one stream has so far."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.server = self.epoch = ""
        self._text_bytes = 0
        self._model = ""
        self._prompt_token_ids: list[int] = []

    def take(self, part: inference_pb2.GenerateStreamResponse) -> tuple[list[int], str]:
        """The part's ids and text."""
        if part.HasField("started"):
            started = part.started
            self.server, self.epoch = started.server, started.epoch
            if not self._model:
                self._model, self._prompt_token_ids = started.model, list(started.prompt_token_ids)
        ids = [token_id for delta in part.deltas for token_id in delta.token_ids]
        text = "".join(delta.text for delta in part.deltas)
        self.token_ids += ids
        self._text_bytes += len(text.encode())
        return ids, text

    def rest_of(self, generation: generation_pb2.Generation) -> generation_pb2.Generation:
        """The request for what is still to come."""
        if self._model:
            generation.resume.model = self._model
            generation.resume.prompt_token_ids.extend(self._prompt_token_ids)
            generation.resume.outputs.add(token_ids=self.token_ids, text_bytes=self._text_bytes)
        return generation


async def main(options: argparse.Namespace) -> None:
    """The process."""
    load = Load.from_json(options.load)
    asks = script(options.seed, options.name, load)
    addresses = options.addresses.split(",")
    made: list[tuple[str, grpc.aio.Channel]] = []
    sdk = Sdk(addresses, timeout_s=load.deadline_s) if options.sdk else None
    if options.control:
        made.append(("all", grpc.aio.insecure_channel("ipv4:" + ",".join(addresses), options=control_options())))
    else:
        made += [(each, grpc.aio.insecure_channel(each, options=client_options())) for each in addresses]
    try:
        with options.out.open("w", buffering=1) as file:
            client = Client(made, file, load.deadline_s, sdk)
            await (client.leave_unread(asks) if options.unread else client.run(asks))
    finally:
        if sdk is not None:
            await sdk.close()
        for _, channel in made:
            await channel.close()


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--addresses", required=True, help="host:port,... routers, home first; servers with --control")
    parser.add_argument("--load", required=True, help="a script.Load as JSON")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--control", action="store_true")
    parser.add_argument("--sdk", action="store_true")
    parser.add_argument("--unread", action="store_true")
    return parser.parse_args(argv)


if __name__ == "__main__":
    asyncio.run(main(parse()))
