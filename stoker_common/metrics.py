"""Metrics: the endpoint that Prometheus scrapes, and the histograms' buckets."""

import threading
from dataclasses import dataclass
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

# All buckets in seconds. The first token: from a small model with a warm prefix to a cold start of a large one.
TTFT_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
# Between tokens: 1 ms in simulation, 5 to 50 on GPUs, more is a stall; 1 and 3 s are the failover's budgets.
ITL_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 3.0, 10.0)
# Waiting for the engine to begin: none, some steps, or an overload.
QUEUE_BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0)
# Whole requests.
DURATION_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
# A pick, whose budget is 100 µs (DESIGN.md section 10).
PICK_BUCKETS_S = (0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.005)


@dataclass(frozen=True, slots=True)
class MetricsServer:
    """Serves `/metrics` in a thread of its own, so that a busy event loop can still be looked into."""

    server: WSGIServer
    thread: threading.Thread

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self.server.server_port

    def close(self) -> None:
        """Stop serving and free the port. Blocks for half a second at most."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def serve(registry: CollectorRegistry, host: str, port: int) -> MetricsServer:
    """Serve the registry on `host` and `port` (0: any free one). Raises OSError that names both if they are taken."""
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        text = f"cannot serve metrics on {host}:{port} ({error.strerror}); choose another port, 0 for any free one"
        raise OSError(error.errno, text) from error
    return MetricsServer(server, thread)
