"""The codec: what is encoded decodes to the same, within Consul's limits, and what is hostile is refused by name."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.catalog_text import MAX_PAIRS, MAX_VALUE_BYTES
from discovery.coarse import coarse_endpoint
from discovery.codec import ServiceRecord, decode, encode
from discovery.endpoint import Endpoint, Load, ModelState, Residency
from discovery.errors import DecodeError, EncodeError

pytestmark = pytest.mark.unit

MODEL = ModelState("SmolLM2-135M-Instruct", Residency.HOT, 2048)
ENDPOINT = Endpoint("server-1", "10.0.0.7:50051", "zone-a", "epoch-1", "vllm", (MODEL,))

# All of Unicode, lone surrogates and control characters too, and often what the codec itself uses.
text = st.text(
    st.one_of(st.characters(exclude_categories=()), st.sampled_from(list(" ;%=@/\n\x00é\u2028\ud800"))), max_size=30
)
counts = st.integers(0, 10**18 - 1)
shares = st.floats(0, 1)
rates = st.floats(0, 1e12)
loads = st.builds(Load, counts, counts, shares, shares, shares, counts, rates, rates)
models = st.builds(
    ModelState, name=text.filter(bool), residency=st.sampled_from(Residency), max_model_tokens=counts,
    time_to_ready_ms=rates, base=text,
)  # fmt: skip
endpoints = st.builds(
    Endpoint,
    server=st.from_regex(r"[A-Za-z0-9._-]{1,128}", fullmatch=True),
    address=st.one_of(
        st.sampled_from(["10.0.0.7:1", "[::1]:65535", "[fe80::1%eth0]:80", "host.example:50051"]),
    ),
    zone=text.filter(bool),
    epoch=text.filter(bool),
    engine=text,
    models=st.lists(models, max_size=60, unique_by=lambda model: model.name).map(tuple),
    engine_version=text,
    accelerator=text,
    accelerator_count=counts,
    accelerator_memory_bytes=counts,
    max_streams=counts,
    kv_tokens=counts,
    step_tokens=counts,
    link_version=counts,
    numerics_class=text,
    resume_modes=st.lists(text.filter(bool), max_size=4).map(tuple),
    exact_modes=st.lists(text.filter(bool), max_size=4).map(tuple),
    load=loads,
)


def within_consuls_limits(record: ServiceRecord) -> bool:
    return len(record.meta) <= MAX_PAIRS and all(
        re.fullmatch(r"[A-Za-z0-9_-]{1,128}", key)
        and 0 < len(value.encode()) <= MAX_VALUE_BYTES
        and value.isprintable()
        for key, value in record.meta.items()
    )


@given(endpoints, st.one_of(st.none(), text))
def test_what_is_encoded_decodes_to_the_same_in_coarse_steps(endpoint: Endpoint, leaving: str | None) -> None:
    record = encode(endpoint, leaving=leaving)
    assert within_consuls_limits(record)
    assert record.leaving is (leaving is not None)
    assert decode(record) == coarse_endpoint(endpoint)


@given(endpoints)
def test_coarse_steps_are_reached_in_one_step(endpoint: Endpoint) -> None:
    assert coarse_endpoint(coarse_endpoint(endpoint)) == coarse_endpoint(endpoint)


def test_ops_can_read_it() -> None:
    meta = encode(replace(ENDPOINT, load=Load(running=3, waiting=0, utilization=0.44, kv_usage=0.18))).meta
    assert meta["zone"] == "zone-a"
    assert meta["epoch"] == "epoch-1"
    assert meta["engine"] == "vllm"
    assert meta["state"] == "serving"
    assert meta["model-0"] == "SmolLM2-135M-Instruct hot 2048"
    assert (meta["load-running"], meta["load-waiting"], meta["load-gpu"], meta["load-kv"]) == ("3", "0", "40", "20")


def test_names_stay_readable() -> None:
    model = ModelState("org/Modèle 7B@v2;x", Residency.ASLEEP, 8192, 470.0, "org/base")
    meta = encode(replace(ENDPOINT, models=(model,))).meta
    assert meta["model-0"] == "org/Modèle%207B@v2%3Bx asleep 8192 ready=470ms base=org/base"


def test_a_long_list_is_spread_over_keys() -> None:
    models = tuple(replace(MODEL, name=f"org/some-model-of-a-usual-name-length-{place}@v1") for place in range(200))
    endpoint = replace(ENDPOINT, models=models)
    record = encode(endpoint)
    assert within_consuls_limits(record)
    assert decode(record) == endpoint


@pytest.mark.parametrize("leaving", [None, "because " * 100])
def test_what_fits_while_serving_fits_when_leaving(leaving: str | None) -> None:
    full = [replace(MODEL, name=f"{place:03}" + "m" * 499) for place in range(100)]
    fits = 0
    for count in range(1, 64):
        try:
            encode(replace(ENDPOINT, models=tuple(full[:count])))
        except EncodeError:
            break
        fits = count
    assert fits > 30
    assert within_consuls_limits(encode(replace(ENDPOINT, models=tuple(full[:fits])), leaving=leaving))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"models": tuple(replace(MODEL, name=f"{place}" * 100) for place in range(100, 1000))}, "models"),
        ({"models": (replace(MODEL, name="m" * 513),)}, "models"),
        ({"models": (replace(MODEL, name=""),)}, "models"),
        ({"models": (replace(MODEL, max_model_tokens=-1),)}, "models"),
        ({"models": (MODEL, MODEL)}, "models"),
        ({"server": "a/b"}, "server"),
        ({"server": ""}, "server"),
        ({"zone": ""}, "zone"),
        ({"epoch": ""}, "epoch"),
        ({"epoch": "e" * 513}, "epoch"),
        ({"address": "no-port"}, "address"),
        ({"address": ":50051"}, "address"),
        ({"address": "host:0"}, "address"),
        ({"address": "host:65536"}, "address"),
        ({"address": "unix:/tmp/socket"}, "address"),
        ({"max_streams": -1}, "max_streams"),
        ({"kv_tokens": 10**18}, "kv_tokens"),
        ({"resume_modes": ("",)}, "resume_modes"),
        ({"exact_modes": ("",)}, "exact_modes"),
    ],
)
def test_what_consul_cannot_hold_is_refused_by_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(EncodeError) as refused:
        encode(replace(ENDPOINT, **change))
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "2"),
        ("format", ""),
        ("zone", ""),
        ("epoch", ""),
        ("epoch", "%FF"),
        ("max-streams", ""),
        ("max-streams", "-1"),
        ("max-streams", "1.5"),
        ("max-streams", "٣"),
        ("max-streams", "9" * 19),
        ("load-running", "NaN"),
        ("load-gpu", "NaN"),
        ("load-gpu", "inf"),
        ("load-gpu", "-10"),
        ("load-gpu", "101"),
        ("load-kv", "1e99"),
        ("load-itl-ms", "0x10"),
        ("load-prefill-tokens-per-second", "1_000"),
        ("model-0", ""),
        ("model-0", "name hot"),
        ("model-0", " hot 2048"),
        ("model-0", "name molten 2048"),
        ("model-0", "name hot many"),
        ("model-0", "name hot 2048 ready=soonms"),
        ("model-0", "%FF hot 2048"),
        ("model-0", "a hot 1; a hot 1"),
        ("model-2", "name hot 2048"),
    ],
)
def test_what_cannot_be_believed_is_refused_by_key(key: str, value: str) -> None:
    record = encode(ENDPOINT)
    with pytest.raises(DecodeError) as refused:
        decode(replace(record, meta={**record.meta, key: value}))
    assert refused.value.key.split("-")[0].rstrip("*") == key.split("-")[0]


def test_a_newer_servers_extra_keys_and_words_do_no_harm() -> None:
    record = encode(ENDPOINT)
    newer = replace(record, meta={**record.meta, "novelty": "1", "model-0": record.meta["model-0"] + " pinned=yes"})
    assert decode(newer) == ENDPOINT


@given(
    st.dictionaries(st.one_of(st.sampled_from(sorted(encode(ENDPOINT).meta)), text), text),
    text,
    st.integers(-(2**70), 2**70),
)
def test_nothing_hostile_raises_anything_else(meta: dict[str, str], host: str, port: int) -> None:
    good = encode(ENDPOINT)
    for record in (ServiceRecord("s", host, port, (), meta), replace(good, meta={**good.meta, **meta})):
        try:
            decode(record)
        except DecodeError as error:
            assert error.key
