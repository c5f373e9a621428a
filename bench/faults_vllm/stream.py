"""One stream followed to its end, and what came of it."""

import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field

import grpc.aio

from bench.faults_vllm.kinds import Asked
from stoker.v1 import endpoint_pb2, inference_pb2, inference_pb2_grpc

_WITHIN_S = 300.0


@dataclass
class Came:
    """What came of one stream. `gap_at`: how many tokens had come before its longest silence between two."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: int = 0
    longest_gap_s: float = 0.0
    gap_at: int = 0
    usage_tokens: int = 0
    servers: list[str] = field(default_factory=list)
    delivered: list[int] = field(default_factory=list)
    modes: list[str] = field(default_factory=list)
    exactness: str = ""
    error: str = ""

    @property
    def resumed(self) -> bool:
        """Whether another server, or the same one once more, went on with it."""
        return bool(self.modes)


async def follow(channel: grpc.aio.Channel, asked: Asked, progress: MutableMapping[str, int]) -> Came:
    """One stream, to its end; `progress` counts its tokens meanwhile."""
    came = Came()
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    request = inference_pb2.GenerateStreamRequest(generation=asked.generation)
    last_s: float | None = None
    try:
        async for part in stub.GenerateStream(request, timeout=_WITHIN_S):
            for delta in part.deltas:
                if delta.token_ids:
                    now_s = time.monotonic()
                    if last_s is not None and now_s - last_s > came.longest_gap_s:
                        came.longest_gap_s, came.gap_at = now_s - last_s, len(came.ids)
                    last_s = now_s
                came.ids += delta.token_ids
                came.text += delta.text
                came.finish = delta.finish_reason or came.finish
            progress[asked.name] = len(came.ids)
            if part.HasField("finished"):
                _finished(came, part.finished)
    except grpc.aio.AioRpcError as error:
        came.error = f"{error.code().name}: {error.details()}"
    return came


def _finished(came: Came, finished: inference_pb2.Finished) -> None:
    came.usage_tokens = finished.usage.completion_tokens
    came.servers = [each.server for each in finished.attempts]
    came.delivered = [each.tokens for each in finished.attempts]
    named = [endpoint_pb2.ResumeMode.Name(each.resume_mode) for each in finished.attempts if each.resume_mode]
    came.modes = [name.removeprefix("RESUME_MODE_").lower() for name in named]
    came.exactness = inference_pb2.Exactness.Name(finished.exactness).removeprefix("EXACTNESS_").lower()
