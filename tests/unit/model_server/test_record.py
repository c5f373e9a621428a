"""Record, parts and metrics: what a server says of itself."""

import pytest
from prometheus_client import generate_latest

from discovery.endpoint import Load, ModelState, Residency
from discovery.messages import load_from_proto, load_to_proto
from model_server.engine import EngineInfo, EngineLoad, EngineOutput
from model_server.liveness import LifeState
from model_server.meter import Meter, Meters
from model_server.metrics import ServerMetrics
from model_server.parts import add_delta, duration
from model_server.record import Identity, Record, SimulatedDevice, Usage, endpoint
from model_server.residency.room import Price
from stoker.v1 import inference_pb2
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.unit

INFO = EngineInfo("fake", "1.2", "m", 100, 50, 4, 1000, 16, "H100", 2, 80 << 30, "class-1")


class Loaded:
    """An engine of which only the figures matter."""

    info = INFO

    def load(self) -> EngineLoad:
        return EngineLoad(steps=9, running=3, waiting=2, kv_usage=0.5)


def test_the_record_says_what_the_engine_is_and_how_loaded_it_is_now() -> None:
    meter = Meter(FakeClock())
    sequences = [meter.begin(100) for _ in range(4)]
    models = (ModelState("m@1", Residency.HOT, 100),)
    base = endpoint(Identity("s", "z", "e", "h:1"), INFO, models)
    record = Record(base, Loaded(), Meters([meter, Meter(FakeClock())]), lambda: Usage(0.8, 0.9))
    said = record.endpoint()
    assert (said.server, said.zone, said.epoch, said.address) == ("s", "z", "e", "h:1")
    assert (said.max_streams, said.kv_tokens, said.numerics_class) == (4, 1000, "class-1")
    assert (said.accelerator, said.accelerator_count, said.accelerator_memory_bytes) == ("H100", 2, 80 << 30)
    assert said.models[0].name == "m@1" and said.models[0].max_model_tokens == 100
    assert said.load == Load(3, 1, 0.5, 0.8, 0.9, 400, context_tokens=400, waiting_cached_prompt_tokens=0)
    for sequence in sequences:
        sequence.end()
    assert (record.load().running, record.load().waiting) == (0, 0), "figures of a last step are not load"


@pytest.mark.parametrize(("room", "ms"), [(Price(), 0), (Price(1.5, ("b",)), 1500), (Price(None), 3_600_000)])
def test_what_room_costs_is_told(room: Price, ms: float) -> None:
    base = endpoint(Identity("s", "z", "e", "h:1"), INFO, ())
    load = Record(base, Loaded(), Meters([Meter(FakeClock())]), Usage, lambda: room).load()
    assert (load.room_ms, load.yielding) == (ms, room.victims)
    assert load_from_proto(load_to_proto(load)) == load


def test_what_routers_expect_to_be_cached_is_told_and_who_does_not_tell_it_is_known() -> None:
    base = endpoint(Identity("s", "z", "e", "h:1"), INFO, ())
    load = Record(base, Loaded(), Meters([Meter(FakeClock())]), Usage, cached=lambda: 300).load()
    assert load.waiting_cached_prompt_tokens == 300
    assert load_from_proto(load_to_proto(load)) == load
    assert load_from_proto(load_to_proto(Load(running=1))) == Load(running=1)


def test_a_simulated_device_is_as_busy_as_its_batch() -> None:
    assert SimulatedDevice(Loaded()).read() == Usage(0.75, 0.5)


def test_a_delta_has_what_the_step_added_and_what_stopped_it() -> None:
    response = inference_pb2.GenerateStreamResponse()
    stop = inference_pb2.FINISH_REASON_STOP
    add_delta(response, 0, EngineOutput("x", (5,)))
    add_delta(response, 2, EngineOutput("", (6, 7), finish_reason=stop, stop_string="END"))
    add_delta(response, 1, EngineOutput("", (8,), finish_reason=stop, stop_token_id=0))
    plain, by_string, by_token = response.deltas
    assert (plain.index, plain.text, list(plain.token_ids), plain.finish_reason) == (0, "x", [5], 0)
    assert (by_string.index, list(by_string.token_ids), by_string.stop_string) == (2, [6, 7], "END")
    assert by_token.WhichOneof("stopped_by") == "stop_token_id" and by_token.stop_token_id == 0


def test_durations_do_not_go_below_zero_and_an_unknown_itl_is_absent() -> None:
    assert duration(-1.0).ToMilliseconds() == 0
    assert duration(1.25).ToMilliseconds() == 1250
    assert not load_to_proto(Load()).HasField("itl")
    assert load_to_proto(Load(itl_ms=12.5)).itl.nanos == 12_500_000


def test_metrics_read_the_state_at_each_scrape_and_label_only_from_closed_sets() -> None:
    metrics, state = ServerMetrics(["m"]), [LifeState.STARTING]
    metrics.watch(lambda: Load(running=3, kv_usage=0.5), lambda: state[0], lambda: 7)
    metrics.request_ended("m", "OK")
    metrics.request_ended("", "NOT_FOUND")
    metrics.generation_ended("m", prompt=10, cached=4, completion=3, ttft_s=0.02, itl_s=None, queue_s=0.001)
    read = metrics.registry.get_sample_value
    assert read("stoker_server_requests_total", {"model": "other", "outcome": "NOT_FOUND"}) == 1.0
    assert read("stoker_server_tokens_total", {"model": "m", "kind": "cached"}) == 4.0
    assert read("stoker_server_ttft_seconds_count", {"model": "m"}) == 1.0
    assert read("stoker_server_in_flight") == 7.0
    assert read("stoker_engine_running") == 3.0
    assert read("stoker_server_state", {"state": "starting"}) == 1.0
    state[0] = LifeState.STUCK
    assert read("stoker_server_state", {"state": "starting"}) == 0.0
    assert read("stoker_server_state", {"state": "stuck"}) == 1.0
    assert b"stoker_server_in_flight" in generate_latest(metrics.registry)
