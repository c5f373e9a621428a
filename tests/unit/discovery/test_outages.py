"""The watcher and the registrar through every outage of the in-memory catalog: nothing known is ever lost."""

import asyncio
import logging
from dataclasses import replace

import pytest

from discovery.catalog import CatalogState
from discovery.consul_registrar import ConsulRegistrar, RegistrarTiming, load_line
from discovery.endpoint import Load
from discovery.errors import EncodeError
from discovery.memory import Fault, MemoryCatalog
from discovery.zone_watch import WatcherTiming
from tests.integration.discovery.kit import Seen, make_endpoint, running, until

pytestmark = pytest.mark.unit

PASSING, MISSING = CatalogState.PASSING, CatalogState.MISSING
QUICK = WatcherTiming(wait_s=0.1, gap_s=0.001, zones_every_s=0.02, retry_first_s=0.005, retry_most_s=0.02)
QUICK_REGISTRAR = RegistrarTiming(
    pass_every_s=0.02, load_every_s=0.05, settle_s=0.05, leave_within_s=0.2, retry_first_s=0.005, retry_most_s=0.02
)
FAULTS = [fault for fault in Fault if fault is not Fault.NONE]


async def until_more_marks(registrar: ConsulRegistrar) -> None:
    marks = registrar.marks
    await until(lambda: registrar.marks > marks)


@pytest.mark.parametrize("fault", FAULTS)
async def test_no_outage_shrinks_the_set_and_confirmation_stops(fault: Fault) -> None:
    catalog, seen = MemoryCatalog(), Seen()
    catalog.put(make_endpoint())
    watcher = catalog.watcher("zone-a", timing=QUICK)
    async with running(watcher.run(seen.publish)):
        await seen.until_state(PASSING)
        catalog.fault("zone-a", fault)
        if fault is Fault.EMPTY:
            # It looks like the truth, so the entry is missing; it is kept all the same.
            await seen.until_state(MISSING)
        else:
            await seen.until(lambda: bool(seen.zone().error))
            confirmed_at_s = seen.zone().confirmed_at_s
            watch = watcher.watches[0]
            trouble = watch.failures + watch.doubted
            await until(lambda: watch.failures + watch.doubted > trouble)
            assert seen.state() is PASSING
            assert seen.zone().confirmed_at_s == confirmed_at_s
        catalog.fault("zone-a", Fault.NONE)
        await seen.until(lambda: seen.state() is PASSING and not seen.zone().error)


@pytest.mark.parametrize("fault", FAULTS)
async def test_another_zones_trouble_holds_up_nothing(fault: Fault) -> None:
    catalog, seen = MemoryCatalog(["zone-a", "zone-b"]), Seen()
    catalog.fault("zone-b", fault)
    async with running(catalog.watcher("zone-a", timing=QUICK).run(seen.publish)):
        await seen.until(lambda: seen.zone().confirmed_at_s is not None)
        # One zone after the other would take zone-b's time-out, over 2 s, twenty times.
        async with asyncio.timeout(10.0):
            for place in range(20):
                catalog.put(make_endpoint(epoch=str(place)))
                await seen.until_epoch(str(place))


async def test_a_router_that_starts_without_a_leader_takes_what_there_is() -> None:
    catalog, seen = MemoryCatalog(), Seen()
    catalog.put(make_endpoint())
    catalog.fault("zone-a", Fault.LEADERLESS)
    async with running(catalog.watcher("zone-a", timing=QUICK).run(seen.publish)):
        await seen.until_state(PASSING)
        assert seen.zone().confirmed_at_s is None
        assert "leader" in seen.zone().error


async def test_a_zone_that_joins_is_watched_and_one_in_a_fixed_list_only() -> None:
    catalog, following, fixed = MemoryCatalog(["zone-a"]), Seen(), Seen()
    async with running(
        catalog.watcher("zone-a", timing=QUICK).run(following.publish),
        catalog.watcher("zone-a", zones=["zone-a"], timing=QUICK).run(fixed.publish),
    ):
        await fixed.until(lambda: fixed.zone().confirmed_at_s is not None)
        catalog.add_zone("zone-b")
        catalog.put(make_endpoint(zone="zone-b"))
        await following.until_state(PASSING, zone="zone-b")
        assert set(fixed.view.zones) == {"zone-a"}


async def test_missing_entries_are_bounded_and_the_loss_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    catalog, seen = MemoryCatalog(), Seen()
    watcher = catalog.watcher("zone-a", timing=replace(QUICK, max_missing=3))
    caplog.set_level(logging.WARNING)
    async with running(watcher.run(seen.publish)):
        for place in range(10):
            catalog.put(make_endpoint(f"server-{place}"))
            await seen.until_state(PASSING, f"server-{place}")
            catalog.remove("zone-a", f"server-{place}")
            await seen.until_state(MISSING, f"server-{place}")
    assert sorted(seen.zone().entries) == ["server-7", "server-8", "server-9"]
    assert watcher.watches[0].dropped == 7
    assert any("missing longest" in record.message for record in caplog.records)


@pytest.mark.parametrize("fault", [Fault.UNREACHABLE, Fault.DENIED, Fault.SERVER_ERROR, Fault.HANG])
async def test_a_registrar_outlasts_an_outage_and_logs_it_once(fault: Fault, caplog: pytest.LogCaptureFixture) -> None:
    catalog, seen = MemoryCatalog(), Seen()
    catalog.fault("zone-a", fault)
    registrar = catalog.registrar("zone-a", QUICK_REGISTRAR)
    registrar.announce(make_endpoint())
    caplog.set_level(logging.WARNING)
    async with running(registrar.run(), catalog.watcher("zone-a", timing=QUICK).run(seen.publish)):
        await until(lambda: registrar.failures >= 2 or fault is Fault.HANG)
        catalog.restart_empty("zone-a")
        catalog.fault("zone-a", Fault.NONE)
        await seen.until_state(PASSING)
    assert sum("cannot reach the catalog" in record.message for record in caplog.records) <= 1


@pytest.mark.parametrize("fault", [Fault.UNREACHABLE, Fault.DENIED, Fault.SERVER_ERROR, Fault.HANG])
async def test_leaving_gives_up_in_time_and_loudly(fault: Fault, caplog: pytest.LogCaptureFixture) -> None:
    catalog, seen = MemoryCatalog(), Seen()
    registrar = catalog.registrar("zone-a", QUICK_REGISTRAR)
    registrar.announce(make_endpoint())
    async with running(registrar.run(), catalog.watcher("zone-a", timing=QUICK).run(seen.publish)):
        await seen.until_state(PASSING)
        catalog.fault("zone-a", fault)
        async with asyncio.timeout(1.0):
            await registrar.leave("bye")
    assert any(record.levelno == logging.ERROR for record in caplog.records)


async def test_what_was_never_registered_leaves_without_a_word() -> None:
    catalog = MemoryCatalog()
    registrar = catalog.registrar("zone-a", QUICK_REGISTRAR)
    await registrar.leave("never began")
    registrar.announce(make_endpoint())
    await registrar.leave("never began")
    assert catalog.writes("zone-a") == 0


async def test_a_record_that_does_not_fit_is_refused_and_the_one_before_stays() -> None:
    catalog, seen = MemoryCatalog(), Seen()
    registrar = catalog.registrar("zone-a", QUICK_REGISTRAR)
    registrar.announce(make_endpoint())
    with pytest.raises(EncodeError):
        registrar.announce(replace(make_endpoint(), address="nowhere"))
    with pytest.raises(ValueError, match="server-1"):
        registrar.announce(make_endpoint("server-2"))
    async with running(registrar.run(), catalog.watcher("zone-a", timing=QUICK).run(seen.publish)):
        await seen.until_state(PASSING)


async def test_load_moves_the_check_and_not_the_record() -> None:
    catalog = MemoryCatalog()
    registrar = catalog.registrar("zone-a", replace(QUICK_REGISTRAR, load_every_s=60.0))
    async with running(registrar.run()):
        for place in range(30):
            registrar.announce(make_endpoint(load=Load(running=place, utilization=place / 30)))
            await until_more_marks(registrar)
    assert registrar.writes == 1
    assert catalog.writes("zone-a") == 1


def test_the_load_line_is_fine() -> None:
    line = load_line(Load(running=3, waiting=1, kv_usage=0.213, utilization=0.437, memory_usage=0.5))
    assert line == "gpu 44%, 3 running, 1 waiting, kv 21%, memory 50%"
