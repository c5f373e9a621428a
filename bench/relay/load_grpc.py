"""Load over gRPC with plain stubs: a call for each stream, a channel for each eight streams, as applications have."""

from collections.abc import Callable

import grpc.aio

from bench.relay.load import Seen, Watcher
from bench.relay.script import MODEL, ONCE
from stoker.v1 import generation_pb2, inference_pb2
from stoker_common.channel import client_options

STREAMS_PER_CHANNEL = 8
# Of every so many streams, one's times are kept.
SAMPLED = 4
_SERVICE = "/stoker.v1.InferenceService"


def _generation(text: str, tokens: int) -> generation_pb2.Generation:
    return generation_pb2.Generation(
        model=MODEL, text=text, sampling=generation_pb2.Sampling(max_tokens=tokens, ignore_eos=True)
    )


class GrpcLoad:
    """A `Load`."""

    def __init__(self, address: str, streams: int) -> None:
        self._channels = [
            grpc.aio.insecure_channel(address, options=client_options())
            for _ in range(max(1, streams // STREAMS_PER_CHANNEL))
        ]
        self._unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channels[0].unary_unary(
            f"{_SERVICE}/Generate"
        )

    async def stream(self, i: int, how: str, tokens: int, seen: Seen, began: Callable[[], None]) -> None:
        """See `Load`."""
        channel = self._channels[i % len(self._channels)]
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"{_SERVICE}/GenerateStream")
        request = inference_pb2.GenerateStreamRequest(generation=_generation(f"{how} {i}", tokens))
        call = method(request.SerializeToString())
        watcher = Watcher(seen) if i % SAMPLED == 0 else None
        first = True
        try:
            async for data in call:
                deltas = inference_pb2.GenerateStreamResponse.FromString(data).deltas
                seen.messages += 1
                seen.tokens += len(deltas)
                if watcher is not None:
                    for delta in deltas:
                        watcher.came(delta.text)
                if first and deltas:
                    first = False
                    began()
        finally:
            call.cancel()

    async def unary(self) -> None:
        """See `Load`."""
        request = inference_pb2.GenerateRequest(generation=_generation(ONCE, 16))
        await self._unary(request.SerializeToString())

    async def close(self) -> None:
        """See `Load`."""
        for channel in self._channels:
            await channel.close()
