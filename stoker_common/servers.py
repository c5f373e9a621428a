"""The gRPC servers that there are: grpc's, and ours over an HTTP/2 of our own (ADR 150). Each is a grpc.aio.Server."""

from collections.abc import Sequence

import grpc.aio
from prometheus_client import CollectorRegistry

from stoker_common.channel import Http2, server_options
from stoker_common.http2.metrics import Http2Collector
from stoker_common.http2.server import Http2Server


def server(http2: Http2, *, share_port: bool = False, registry: CollectorRegistry | None = None) -> grpc.aio.Server:
    """A server that has neither services nor ports yet. `share_port`: several processes may listen on one port.
    `registry`: where ours shows what is open and what its limits refused; gRPC's shows nothing."""
    if http2 == "stoker":
        made = Http2Server(share_port=share_port)
        if registry is not None:
            registry.register(Http2Collector(made.bounds))
        return made
    return grpc.aio.server(options=server_options(share_port=share_port))


def reflect(made: grpc.aio.Server, services: Sequence[str]) -> None:
    """Let the server tell of these services, to grpcurl and the like."""
    # Only where somebody switched it on: the import registers descriptors in the process.
    from grpc_reflection.v1alpha import reflection

    reflection.enable_server_reflection((*services, reflection.SERVICE_NAME), made)
