"""A router that has just started: what it knows by when it calls itself healthy."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from discovery.endpoint import Load
from discovery.memory import MemoryCatalog
from tests.fakes.fleet import FleetServer, running_server, server_settings
from tests.fakes.inference import channel_to, generation, unary
from tests.fakes.mesh import ZONES, router

pytestmark = pytest.mark.integration

# What the catalog remembers of a server: enough streams that any way to another zone would cost less.
BUSY = Load(running=15, prefill_tokens_per_second=1000.0, itl_ms=10.0)


@asynccontextmanager
async def one_in_each_zone() -> AsyncIterator[list[FleetServer]]:
    home, away = (server_settings(zone=zone, server_id=f"{zone}-0") for zone in ZONES)
    async with running_server(home) as first, running_server(away) as second:
        yield [first, second]


async def healthy(channel: grpc.aio.Channel) -> None:
    """Wait until whatever listens there calls itself so."""
    call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=10)
    async for said in call:
        if said.status == health_pb2.HealthCheckResponse.SERVING:
            call.cancel()
            return


async def test_it_keeps_to_its_zone_whatever_the_catalog_remembers_of_its_servers() -> None:
    catalog = MemoryCatalog(ZONES)
    async with one_in_each_zone() as (home, away):
        catalog.put(replace(home.server.endpoint(), load=BUSY))
        catalog.put(away.server.endpoint())
        async with router(catalog, ZONES[0]) as started, channel_to(f"127.0.0.1:{started.port}") as channel:
            await healthy(channel)
            answer = await unary(channel, generation(max_tokens=1))
    assert (answer.started.server, answer.started.pick.reason) == ("zone-a-0", "nearest zone")


async def test_a_server_that_accepts_and_says_nothing_does_not_keep_it_from_serving() -> None:
    catalog = MemoryCatalog(ZONES)
    async with one_in_each_zone() as (home, _):
        with socket.create_server(("127.0.0.1", 0)) as mute:
            silent = replace(home.server.endpoint(), server="mute", address=f"127.0.0.1:{mute.getsockname()[1]}")
            catalog.put(silent)
            catalog.put(home.server.endpoint())
            async with router(catalog, ZONES[0]) as started, channel_to(f"127.0.0.1:{started.port}") as channel:
                await healthy(channel)
                assert (await unary(channel, generation(max_tokens=1))).started.server == "zone-a-0"
