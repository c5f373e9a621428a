"""A hundred users with Locust, for those who know it: `make up`, `make bench-peers`, then

`PYTHONPATH=generated .cache/peers/bin/locust -f bench/locustfile.py --headless -u 100 -r 20 -t 60s -H 127.0.0.1:7070`

Each user streams an answer, reads it, and thinks for a second. Locust shows the time to the first token, and the whole.
"""

import os
import time

import grpc
import grpc.experimental.gevent
from locust import User, between, task

from stoker.v1 import generation_pb2, inference_pb2, inference_pb2_grpc

grpc.experimental.gevent.init_gevent()

MODEL = os.environ.get("STOKER_MODEL_NAME", "sim-model")
MAX_TOKENS = 64


class Reader(User):
    """Asks, and reads the answer."""

    wait_time = between(0.5, 1.5)
    host = "127.0.0.1:7070"

    def on_start(self) -> None:
        """A channel for each user, as for each application."""
        self.channel = grpc.insecure_channel(self.host)
        self.stub = inference_pb2_grpc.InferenceServiceStub(self.channel)

    def on_stop(self) -> None:
        """Close it."""
        self.channel.close()

    @task
    def stream(self) -> None:
        """One answer."""
        request = inference_pb2.GenerateStreamRequest(
            generation=generation_pb2.Generation(
                model=MODEL,
                text="Write a short story about a lighthouse keeper.",
                sampling=generation_pb2.Sampling(max_tokens=MAX_TOKENS, ignore_eos=True),
            )
        )
        began_s = time.perf_counter()
        first_ms, size, error = 0.0, 0, None
        try:
            for part in self.stub.GenerateStream(request, timeout=60):
                if part.deltas and not first_ms:
                    first_ms = (time.perf_counter() - began_s) * 1e3
                size += part.ByteSize()
        except grpc.RpcError as failure:
            error = failure
        whole_ms = (time.perf_counter() - began_s) * 1e3
        for name, took_ms in (("first token", first_ms), ("whole answer", whole_ms)):
            self.environment.events.request.fire(
                request_type="GenerateStream", name=name, response_time=took_ms, response_length=size, exception=error
            )
