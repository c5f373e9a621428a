"""The gRPC channels that there are: grpc's, and ours on an HTTP/2 of our own (ADR 152). Each is a grpc.aio.Channel."""

import grpc.aio

from stoker_common.channel import Http2, client_options
from stoker_common.http2.channel import Http2Channel
from stoker_common.http2.limits import client_limits
from stoker_common.http2.target import target


def check(http2: Http2, address: str) -> None:
    """Raises ValueError for an address that a channel of this kind cannot be made for."""
    if http2 == "stoker":
        target(address)


def channel(http2: Http2, address: str, *, ping_when_idle: bool = False) -> grpc.aio.Channel:
    """A channel to a router or a server, in the clear. `ping_when_idle`: see `client_options`. Raises ValueError for an
    address that ours cannot reach."""
    if http2 == "stoker":
        return Http2Channel(address, client_limits(ping_when_idle=ping_when_idle))
    return grpc.aio.insecure_channel(address, options=client_options(ping_when_idle=ping_when_idle))
