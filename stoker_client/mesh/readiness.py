"""Whether a process of the mesh answers. A probe is one try: it ends within a second and raises nothing for a "no"."""

import asyncio
import json
import urllib.request
from collections.abc import Awaitable, Callable, Sequence

import grpc
from grpc_health.v1 import health_pb2

from stoker_client.client import Client
from stoker_client.errors import StokerError

Probe = Callable[[], Awaitable[bool]]

ONE_TRY_S = 1.0
POLL_FIRST_S = 0.05
POLL_MOST_S = 0.25


async def until_true(probe: Probe) -> None:
    """Return once the probe says yes; asks ever slower, four times a second in the end."""
    pause_s = POLL_FIRST_S
    while not await probe():
        await asyncio.sleep(pause_s)
        pause_s = min(POLL_MOST_S, pause_s * 1.5)


async def leads(address: str, zones: Sequence[str]) -> bool:
    """Whether the Consul agent at `address` has a leader, and one in each other zone's datacenter by way of it."""
    return await asyncio.to_thread(_all_led, address, zones)


def _all_led(address: str, zones: Sequence[str]) -> bool:
    # The standard library's client is enough here, and it is loaded at once while the processes start.
    try:
        for zone in zones:
            with urllib.request.urlopen(f"http://{address}/v1/status/leader?dc={zone}", timeout=ONE_TRY_S) as answer:
                if json.load(answer) == "":
                    return False
    except (OSError, ValueError):
        return False
    return True


async def serving(address: str) -> bool:
    """Whether the gRPC server at `address` calls itself healthy."""
    async with grpc.aio.insecure_channel(address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        call = check(health_pb2.HealthCheckRequest(), timeout=ONE_TRY_S)
        try:
            answer = await call
        except grpc.aio.AioRpcError:
            return False
        finally:
            call.cancel()
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def sees(router: str, servers: frozenset[str]) -> bool:
    """Whether the router at `router` answers and could send requests to each of `servers`."""
    async with Client(router, timeout_s=ONE_TRY_S, connect_timeout_s=ONE_TRY_S) as client:
        try:
            status = await client.status()
        except StokerError:
            return False
    eligible = {
        endpoint.endpoint.server for zone in status.zones for endpoint in zone.endpoints if not endpoint.excluded_by
    }
    return servers <= eligible
