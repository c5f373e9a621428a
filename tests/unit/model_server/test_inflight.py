"""Requests in flight and admission: refusals, deadlines, ends for all."""

import asyncio

import pytest

from model_server.admission import Admission
from model_server.inflight import InFlight
from stoker_common.refusal import Code, Refusal, unavailable

pytestmark = pytest.mark.unit


def leaving() -> Refusal:
    return unavailable("leaving", reason="SERVER_DRAINING")


async def test_a_deadline_ends_the_request_as_such() -> None:
    in_flight = InFlight()
    with pytest.raises(Refusal) as refused:
        async with in_flight.request(0.01):
            await asyncio.Event().wait()
    assert refused.value.code is Code.DEADLINE_EXCEEDED
    assert len(in_flight) == 0


@pytest.mark.parametrize("remaining_s", [0.0, -5.0])
async def test_a_deadline_that_has_passed_lets_nothing_begin(remaining_s: float) -> None:
    with pytest.raises(Refusal) as refused:
        async with InFlight().request(remaining_s):
            raise AssertionError("it began")
    assert refused.value.code is Code.DEADLINE_EXCEEDED


async def test_a_timeout_of_the_requests_own_stays_what_it_is() -> None:
    with pytest.raises(TimeoutError):
        async with InFlight().request(10.0):
            raise TimeoutError


async def test_failing_ends_all_that_run_wherever_they_wait_and_refuses_what_comes() -> None:
    in_flight = InFlight()
    ends: list[Refusal] = []

    async def request(remaining_s: float | None) -> None:
        try:
            async with in_flight.request(remaining_s):
                await asyncio.Event().wait()
        except Refusal as refusal:
            ends.append(refusal)

    async with asyncio.TaskGroup() as tasks:
        for remaining_s in (None, None, 60.0):
            tasks.create_task(request(remaining_s))
        await asyncio.sleep(0)
        assert len(in_flight) == 3
        in_flight.fail(leaving)
        in_flight.fail(leaving)
        await in_flight.wait_empty()
    assert [end.reason for end in ends] == ["SERVER_DRAINING"] * 3
    assert len({id(end) for end in ends}) == 3
    with pytest.raises(Refusal):
        in_flight.check_open()


async def test_closing_lets_run_what_runs() -> None:
    in_flight = InFlight(leaving)
    in_flight.open()
    async with in_flight.request(None):
        in_flight.close(leaving)
        with pytest.raises(Refusal):
            async with in_flight.request(None):
                raise AssertionError("it was let in")
        assert len(in_flight) == 1
    await in_flight.wait_empty()


async def test_a_cancelled_request_is_cancelled_and_gone() -> None:
    in_flight = InFlight()

    async def request() -> None:
        async with in_flight.request(60.0):
            await asyncio.Event().wait()

    task = asyncio.ensure_future(request())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(in_flight) == 0


async def test_admission_counts_sequences_and_says_when_to_come_back() -> None:
    admission = Admission(InFlight(), max_streams=lambda: 2, max_waiting=1, drain_s=lambda: 100.0)
    async with admission.request(None, sequences=2), admission.request(None, sequences=1):
        with pytest.raises(Refusal) as refused:
            async with admission.request(None, sequences=1):
                raise AssertionError("it was let in")
        assert refused.value.code is Code.RESOURCE_EXHAUSTED
        assert refused.value.retry_after_s == 5.0
    async with admission.request(None, sequences=64):
        pass
