"""Records as the API's messages, and loads back from them: for routers, servers and links alike."""

from google.protobuf.duration_pb2 import Duration

from discovery.endpoint import Endpoint, Load, ModelState, Residency
from stoker.v1 import endpoint_pb2
from stoker_common.resuming import MODES

_RESIDENCY = {
    Residency.HOT: endpoint_pb2.RESIDENCY_HOT,
    Residency.ASLEEP: endpoint_pb2.RESIDENCY_ASLEEP,
    Residency.STAGED: endpoint_pb2.RESIDENCY_STAGED,
    Residency.LISTED: endpoint_pb2.RESIDENCY_LISTED,
}


def seconds(value: float) -> Duration:
    """A time in seconds as the API tells it."""
    duration = Duration()
    duration.FromNanoseconds(round(value * 1e9))
    return duration


def load_from_proto(load: endpoint_pb2.Load) -> Load:
    """A load that a server reported with an answer."""
    return Load(
        running=load.running,
        waiting=load.waiting,
        kv_usage=load.kv_usage,
        utilization=load.utilization,
        memory_usage=load.memory_usage,
        waiting_prompt_tokens=load.waiting_prompt_tokens,
        prefill_tokens_per_second=load.prefill_tokens_per_second,
        itl_ms=load.itl.ToNanoseconds() / 1e6,
        attention_tokens=load.attention_tokens,
        context_tokens=load.context_tokens,
        step_ms_per_context_token=load.step_ms_per_context_token,
        waiting_cached_prompt_tokens=(
            load.waiting_cached_prompt_tokens if load.HasField("waiting_cached_prompt_tokens") else None
        ),
        room_ms=load.room.ToNanoseconds() / 1e6,
        yielding=tuple(load.yielding),
    )


def load_to_proto(load: Load) -> endpoint_pb2.Load:
    """A load for the API."""
    return endpoint_pb2.Load(
        running=load.running,
        waiting=load.waiting,
        kv_usage=load.kv_usage,
        utilization=load.utilization,
        memory_usage=load.memory_usage,
        waiting_prompt_tokens=load.waiting_prompt_tokens,
        prefill_tokens_per_second=load.prefill_tokens_per_second,
        itl=seconds(load.itl_ms / 1e3) if load.itl_ms else None,
        attention_tokens=load.attention_tokens,
        context_tokens=load.context_tokens,
        step_ms_per_context_token=load.step_ms_per_context_token,
        waiting_cached_prompt_tokens=load.waiting_cached_prompt_tokens,
        room=seconds(load.room_ms / 1e3) if load.room_ms else None,
        yielding=load.yielding,
    )


def residency_to_proto(residency: Residency) -> endpoint_pb2.Residency.ValueType:
    """Where a model is, for the API."""
    return _RESIDENCY[residency]


def model_to_proto(model: ModelState) -> endpoint_pb2.Model:
    """A model's state for the API."""
    return endpoint_pb2.Model(
        name=model.name,
        residency=residency_to_proto(model.residency),
        time_to_ready=seconds(model.time_to_ready_ms / 1e3),
        max_model_tokens=model.max_model_tokens,
        base=model.base,
    )


def endpoint_to_proto(endpoint: Endpoint) -> endpoint_pb2.Endpoint:
    """A record for the API."""
    return endpoint_pb2.Endpoint(
        server=endpoint.server,
        address=endpoint.address,
        zone=endpoint.zone,
        epoch=endpoint.epoch,
        engine=endpoint.engine,
        engine_version=endpoint.engine_version,
        accelerator=endpoint_pb2.Accelerator(
            kind=endpoint.accelerator,
            count=endpoint.accelerator_count,
            memory_bytes=endpoint.accelerator_memory_bytes,
        ),
        capacity=endpoint_pb2.Capacity(
            max_streams=endpoint.max_streams, kv_tokens=endpoint.kv_tokens, step_tokens=endpoint.step_tokens
        ),
        link_version=endpoint.link_version,
        models=[model_to_proto(model) for model in endpoint.models],
        load=load_to_proto(endpoint.load),
        numerics_class=endpoint.numerics_class,
        resume_modes=[MODES[name] for name in endpoint.resume_modes if name in MODES],
        exact_modes=[MODES[name] for name in endpoint.exact_modes if name in MODES],
    )
