"""An endpoint as a Consul service and back. Pure; Meta reads well in `curl .../catalog/service/stoker-model-server`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from discovery.catalog_text import MAX_PAIRS, MAX_VALUE_BYTES, escape, read_count, read_number, unescape
from discovery.coarse import coarse_endpoint
from discovery.endpoint import Endpoint, Load
from discovery.errors import DecodeError, EncodeError
from discovery.model_list import decode_models, encode_models

SERVICE = "stoker-model-server"
# Raised when a reader of the old form would misread the new one; a new key alone does not raise it.
FORMAT = "1"

_STATE, _LEAVING, _SERVING = "state", "leaving", "serving"
# The id travels in URL paths (/v1/agent/check/pass/service:ID), which py-consul leaves `/` and `:` alone in.
_SERVER_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_LARGEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """A service as Consul holds it: `meta` values are at most 512 bytes, at most 64 of them."""

    service_id: str
    address: str
    port: int
    tags: tuple[str, ...]
    meta: Mapping[str, str]

    @property
    def leaving(self) -> bool:
        """Whether the server said that it leaves; readable even where the rest of Meta is not."""
        return self.meta.get(_STATE) == _LEAVING


def encode(endpoint: Endpoint, *, leaving: str | None = None) -> ServiceRecord:
    """The record of `endpoint`, its load in coarse steps; `leaving`: why it leaves, None if it does not.

    Raises EncodeError naming the field that Consul has no room or no form for.
    """
    if not _SERVER_ID.fullmatch(endpoint.server):
        raise EncodeError("server", f"{endpoint.server[:60]!r} must be 1 to 128 characters of A-Z a-z 0-9 . _ -")
    if not endpoint.epoch:
        raise EncodeError("epoch", "is empty; it must be one id per life of the process")
    if not endpoint.zone:
        raise EncodeError("zone", "is empty; it must be the Consul datacenter's name")
    host, port = split_address(endpoint.address)
    endpoint = coarse_endpoint(endpoint)
    meta = {
        "format": FORMAT,
        _STATE: _SERVING if leaving is None else _LEAVING,
        "zone": _text("zone", endpoint.zone),
        "epoch": _text("epoch", endpoint.epoch),
        "engine": _text("engine", endpoint.engine),
        "engine-version": _text("engine_version", endpoint.engine_version),
        "accelerator": _text("accelerator", endpoint.accelerator),
        "accelerator-count": _count("accelerator_count", endpoint.accelerator_count),
        "accelerator-memory-bytes": _count("accelerator_memory_bytes", endpoint.accelerator_memory_bytes),
        "max-streams": _count("max_streams", endpoint.max_streams),
        "kv-tokens": _count("kv_tokens", endpoint.kv_tokens),
        "step-tokens": _count("step_tokens", endpoint.step_tokens),
        "link-version": _count("link_version", endpoint.link_version),
        "numerics-class": _text("numerics_class", endpoint.numerics_class),
        "resume-modes": _modes("resume_modes", endpoint.resume_modes),
        "exact-modes": _modes("exact_modes", endpoint.exact_modes),
        **_encode_load(endpoint.load),
    }
    if leaving:
        meta["leaving-because"] = escape(leaving)[: MAX_VALUE_BYTES // 4]
    for model in endpoint.models:
        _count("models", model.max_model_tokens)
    # Consul gives an absent key and an empty value no different meaning; absent is shorter to read.
    meta = {key: value for key, value in meta.items() if value}
    # A pair is kept free for the reason to leave: what could be written while serving can be written when leaving.
    free = MAX_PAIRS - len(meta) - (0 if leaving else 1)
    meta |= encode_models(endpoint.models, free)
    return ServiceRecord(endpoint.server, host, port, tuple(filter(None, (endpoint.engine,))), meta)


def decode(record: ServiceRecord) -> Endpoint:
    """The endpoint in `record`. Raises DecodeError naming what in it cannot be believed, and nothing else."""
    meta = record.meta
    if _required(meta, "format") != FORMAT:
        raise DecodeError("format", f"{meta['format'][:40]!r} is not {FORMAT}: a newer server's record")
    if not _SERVER_ID.fullmatch(record.service_id):
        raise DecodeError("ServiceID", f"{record.service_id[:60]!r} is not a server's id")
    if not record.address or not 0 < record.port <= _LARGEST_PORT:
        raise DecodeError("Address", f"{record.address[:80]!r} and port {record.port} are no address")
    host = f"[{record.address}]" if ":" in record.address else record.address
    return Endpoint(
        server=record.service_id,
        address=f"{host}:{record.port}",
        zone=_required(meta, "zone"),
        epoch=_required(meta, "epoch"),
        engine=_optional(meta, "engine"),
        models=decode_models(meta),
        engine_version=_optional(meta, "engine-version"),
        accelerator=_optional(meta, "accelerator"),
        accelerator_count=_number(meta, "accelerator-count"),
        accelerator_memory_bytes=_number(meta, "accelerator-memory-bytes"),
        max_streams=_number(meta, "max-streams"),
        kv_tokens=_number(meta, "kv-tokens"),
        step_tokens=_number(meta, "step-tokens"),
        link_version=_number(meta, "link-version"),
        numerics_class=_optional(meta, "numerics-class"),
        resume_modes=_decode_modes(meta, "resume-modes"),
        exact_modes=_decode_modes(meta, "exact-modes"),
        load=_decode_load(meta),
    )


def is_load_key(key: str) -> bool:
    """Whether a Meta key holds load, which is written seldom, and not a fact, which is written at once."""
    return key.startswith("load-")


def _encode_load(load: Load) -> dict[str, str]:
    return {
        "load-running": str(load.running),
        "load-waiting": str(load.waiting),
        "load-gpu": _percent(load.utilization),
        "load-kv": _percent(load.kv_usage),
        "load-memory": _percent(load.memory_usage),
        "load-prompt-tokens": str(load.waiting_prompt_tokens),
        "load-prefill-tokens-per-second": f"{load.prefill_tokens_per_second:g}",
        "load-itl-ms": f"{load.itl_ms:g}",
    }


def _decode_load(meta: Mapping[str, str]) -> Load:
    return Load(
        running=_number(meta, "load-running"),
        waiting=_number(meta, "load-waiting"),
        utilization=_share(meta, "load-gpu"),
        kv_usage=_share(meta, "load-kv"),
        memory_usage=_share(meta, "load-memory"),
        waiting_prompt_tokens=_number(meta, "load-prompt-tokens"),
        prefill_tokens_per_second=read_number(
            "load-prefill-tokens-per-second", meta.get("load-prefill-tokens-per-second", "0")
        ),
        itl_ms=read_number("load-itl-ms", meta.get("load-itl-ms", "0")),
    )


def split_address(address: str) -> tuple[str, int]:
    """host:port taken apart. Raises EncodeError."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not host.isprintable() or " " in host or not re.fullmatch("[0-9]{1,5}", port, re.ASCII):
        raise EncodeError("address", f"{address[:80]!r} is not host:port")
    if not 0 < int(port) <= _LARGEST_PORT:
        raise EncodeError("address", f"port {port} is not from 1 to {_LARGEST_PORT}")
    return host, int(port)


def _text(field: str, text: str) -> str:
    value = escape(text)
    if len(value.encode()) > MAX_VALUE_BYTES:
        raise EncodeError(field, f"takes {len(value.encode())} bytes, and Consul holds {MAX_VALUE_BYTES}")
    return value


def _decode_modes(meta: Mapping[str, str], key: str) -> tuple[str, ...]:
    return tuple(unescape(key, mode) for mode in meta.get(key, "").split(" ") if mode)


def _modes(field: str, modes: tuple[str, ...]) -> str:
    value = " ".join(escape(mode, also=" ") for mode in modes)
    if len(value.encode()) > MAX_VALUE_BYTES or "" in modes:
        raise EncodeError(field, f"must be names that take at most {MAX_VALUE_BYTES} bytes")
    return value


def _count(field: str, count: int) -> str:
    if not 0 <= count < 10**18:
        raise EncodeError(field, f"{count} is not from 0 to 10**18 - 1")
    return str(count)


def _percent(share: float) -> str:
    return str(round(share * 100))


def _required(meta: Mapping[str, str], key: str) -> str:
    value = _optional(meta, key)
    if not value:
        raise DecodeError(key, "is missing")
    return value


def _optional(meta: Mapping[str, str], key: str) -> str:
    return unescape(key, meta.get(key, ""))


def _number(meta: Mapping[str, str], key: str) -> int:
    return read_count(key, _required(meta, key))


def _share(meta: Mapping[str, str], key: str) -> float:
    return read_number(key, meta.get(key, "0"), largest=100.0) / 100
