"""Route at a router of several processes: what one of them reserves ends there, whoever hears of it elsewhere."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio
import pytest

from stoker.v1 import generation_pb2, inference_pb2, inference_pb2_grpc, router_pb2, router_pb2_grpc
from stoker_client import Client
from stoker_common.channel import client_options
from stoker_common.tickets import METADATA_KEY
from tests.integration.discovery.kit import consul_mesh
from tests.integration.router.test_processes import MODEL, Router, mesh, spread, text_of

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(180)]

KEY = "a key of the mesh that nobody may read"
TOKENS = 200


@pytest.fixture
def consul(tmp_path: Path) -> Iterator[str]:
    with consul_mesh(("zone-a",), tmp_path) as agents:
        yield agents["zone-a"].config.http_address


def held(router: Router) -> float:
    """Reservations, over all processes."""
    return router.metric("stoker_router_reservations")


def ended(router: Router, how: str) -> float:
    """Reservations that ended so, over all processes."""
    return router.metric("stoker_router_reservations_ended_total", how=how)


async def direct(router: Router, clients: list[Client], stack: AsyncExitStack) -> list[Client]:
    """Clients in direct mode, whose connections both processes share: as many as `clients` and more."""
    made = [await stack.enter_async_context(Client(router.address, mode="direct")) for _ in range(len(clients))]
    names = {(await client.status()).router for client in made}
    return made if len(names) == 2 else await direct(router, clients, stack)


async def test_each_process_settles_what_it_reserved_itself(tmp_path: Path, consul: str) -> None:
    async with mesh(tmp_path, consul, ticket_key=KEY) as router, AsyncExitStack() as stack:
        relayed = await spread(router, stack)
        expected = [await text_of(client, f"prompt {i}", TOKENS) for i, client in enumerate(relayed)]
        clients = await direct(router, relayed, stack)
        begun = [asyncio.Event() for _ in clients]
        running = [
            asyncio.create_task(text_of(client, f"prompt {i}", TOKENS, begun[i])) for i, client in enumerate(clients)
        ]
        for event in begun:
            await event.wait()
        assert await asyncio.to_thread(held, router) == len(clients)
        assert await asyncio.gather(*running) == expected
        await router.until("their ends", lambda: ended(router, "ok") == len(clients))
        assert (held(router), router.metric("stoker_router_in_flight")) == (0, 0)


async def test_a_process_that_is_killed_takes_no_clients_stream_along(tmp_path: Path, consul: str) -> None:
    async with mesh(tmp_path, consul, ticket_key=KEY) as router, AsyncExitStack() as stack:
        clients = await direct(router, await spread(router, stack), stack)
        expected = [await text_of(client, f"prompt {i}", TOKENS) for i, client in enumerate(clients)]
        before = len(clients)
        await router.until("their ends", lambda: ended(router, "ok") == before)
        begun = [asyncio.Event() for _ in clients]
        running = [
            asyncio.create_task(text_of(client, f"prompt {i}", TOKENS, begun[i])) for i, client in enumerate(clients)
        ]
        for event in begun:
            await event.wait()
        os.kill(router.children()[1], signal.SIGKILL)
        assert await asyncio.gather(*running) == expected
        await router.until("a new process", lambda: router.metric("stoker_router_processes") == 2)
        # The new one hears of no reservation of the old one's, and the other one's have all ended.
        await router.until("the end of all", lambda: held(router) == 0)
        assert 0 < ended(router, "ok") - before < len(clients)
        again = await asyncio.gather(*(text_of(client, f"prompt {i}", TOKENS) for i, client in enumerate(clients)))
        assert again == expected
        await router.until("the end of these", lambda: held(router) == 0)


class Stub:
    """One connection to the router, and which process it has."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.routing = router_pb2_grpc.RouterServiceStub(channel)
        self.name = ""


async def one_of_each(router: Router, stack: AsyncExitStack) -> list[Stub]:
    """A connection to each of the two processes."""
    found: dict[str, Stub] = {}
    while len(found) < 2:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(router.address, options=client_options()))
        stub = Stub(channel)
        stub.name = (await stub.routing.Status(router_pb2.StatusRequest())).router
        found.setdefault(stub.name, stub)
    return list(found.values())


async def test_what_another_process_is_told_of_a_reservation_does_nothing(tmp_path: Path, consul: str) -> None:
    async with mesh(tmp_path, consul, ticket_key=KEY) as router, AsyncExitStack() as stack:
        here, there = await one_of_each(router, stack)
        generation = generation_pb2.Generation(model=MODEL, text="once", request_id="r-1")
        generation.sampling.max_tokens = 20
        routed = await here.routing.Route(router_pb2.RouteRequest(generation=generation))
        await router.until("the reservation", lambda: held(router) == 1)
        lost = router_pb2.LostStream(reservation=routed.reservation, unreachable=True)
        await there.routing.Release(router_pb2.ReleaseRequest(lost=lost))
        assert held(router) == 1, "it was not the other process's to give back"
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(routed.address, options=client_options()))
        call = inference_pb2_grpc.InferenceServiceStub(channel).GenerateStream(
            inference_pb2.GenerateStreamRequest(generation=generation), metadata=((METADATA_KEY, routed.ticket),)
        )
        parts = [part async for part in call]
        assert parts[-1].finished.usage.completion_tokens == 20, "the ticket is the mesh's, whichever process wrote it"
        await router.until("its end", lambda: ended(router, "ok") == 1)
        assert held(router) == 0
        again = await here.routing.Route(router_pb2.RouteRequest(generation=generation))
        await here.routing.Release(router_pb2.ReleaseRequest(lost=router_pb2.LostStream(reservation=again.reservation)))
        assert (held(router), ended(router, "released")) == (0, 1)
