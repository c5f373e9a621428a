"""A model server's settings, section `[model_server]`. How they are given: docs/configuration.md."""

import socket
from pathlib import Path
from typing import Any, Literal, Self, cast

from pydantic import BaseModel, Field, SecretStr, ValidationError, create_model, field_validator, model_validator

from discovery.consul_address import ConsulAddress
from model_server.engines.sim_settings import SimSettings
from model_server.engines.vllm_settings import VllmSettings
from stoker_common.channel import Http2
from stoker_common.settings import Settings, SettingsError
from stoker_common.tickets import TicketKeys

_WILDCARDS = ("0.0.0.0", "::", "")
# What a server says of these itself, whatever its engine.
_SAID_ELSEWHERE = frozenset(
    {"model", "served_model_name", "otlp_traces_endpoint", "log_level", "sleep_mode", "max_adapters"}
)


class ModelEntry(Settings):
    """A model beside the first."""

    model: str = Field(min_length=1, description="Hugging Face folder or hub id")
    name: str = Field("", max_length=256, description="name to serve it under; default: the folder's name")
    share: float | None = Field(None, gt=0, le=1, description="of the device's memory, while it is hot")

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        """`NAME=PATH` or `PATH`, as flags and the environment have it."""
        if not isinstance(given, str):
            return given
        name, equals, model = given.partition("=")
        return {"name": name.strip(), "model": model.strip()} if equals else {"model": given}

    @property
    def served_model(self) -> str:
        """The name that requests call the model by."""
        return self.name or Path(self.model).name


class AdapterEntry(Settings):
    """A LoRA adapter of one of the models."""

    name: str = Field(min_length=1, max_length=256, description="name to serve it under")
    adapter: str = Field(min_length=1, description="its folder or hub id")
    base: str = Field("", max_length=256, description="name of the model that it belongs to; default: the first")

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        """`NAME=PATH` or `NAME=PATH:BASE`, as flags and the environment have it."""
        if not isinstance(given, str):
            return given
        name, _, rest = given.partition("=")
        adapter, _, base = rest.partition(":")
        return {"name": name.strip(), "adapter": adapter.strip(), "base": base.strip()}


class ServerSettings(Settings):
    """One model server process."""

    server_id: str = Field("", max_length=128, description="its id in the catalog; default: HOST-PORT")
    zone: str = Field("zone-a", min_length=1, description="its zone: the Consul datacenter")
    listen_host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    listen_port: int = Field(0, ge=0, le=65535, description="port for gRPC; 0 takes any free one")
    advertise_address: str = Field("", description="host or host:port for routers; default: where it listens")
    engine: Literal["vllm", "sim"] = Field("vllm", description="what generates: vLLM, or the simulator")
    model: str = Field("SmolLM2-135M-Instruct", min_length=1, description="Hugging Face folder or hub id")
    model_name: str = Field("", max_length=256, description="name to serve it under; default: the folder's name")
    models: tuple[ModelEntry, ...] = Field(
        (), description="further models: `NAME=PATH` or `PATH`; in the file also tables with `name`, `model`, `share`"
    )
    adapters: tuple[AdapterEntry, ...] = Field(
        (),
        description="LoRA adapters, loaded when they are asked for: `NAME=PATH`, or `NAME=PATH:BASE` where the base is "
        "not the first model; in the file also tables with `name`, `adapter`, `base`",
    )
    max_adapters: int = Field(4, ge=1, description="adapters that are hot at the same time on each of their bases")
    max_hot: int = Field(1, ge=1, description="models that are hot at the same time; the first ones are at first")
    max_asleep: int = Field(4, ge=0, description="models whose weights may wait in the host's memory; GPUs only")
    memory_budget: float = Field(
        0.9,
        gt=0,
        le=1,
        description="share of the device's memory for hot models; each takes its part of max_hot unless told",
    )
    consul_address: ConsulAddress = Field(
        "", description="the zone's Consul agent, host:port or URL; default: no registration"
    )
    pins_zone: str = Field("", description="datacenter whose KV has the pins, stoker/pins/MODEL; default: its own")
    pins_file: str = Field("", description="where the last copy of the pins is kept for a start without Consul")
    metrics_host: str = Field("127.0.0.1", description="address for Prometheus to scrape")
    metrics_port: int = Field(-1, ge=-1, le=65535, description="port for Prometheus; 0 takes any free one, -1 none")
    drain_seconds: float = Field(30.0, ge=0, description="how long SIGTERM lets requests in flight end, in seconds")
    probe_interval_seconds: float = Field(5.0, gt=0, description="idle time after which it probes its engine")
    probe_timeout_seconds: float = Field(10.0, gt=0, description="a probe that is not back by then means stuck")
    first_probe_timeout_seconds: float = Field(120.0, gt=0, description="the same for the first probes, after loading")
    stuck_after_seconds: float = Field(10.0, gt=0, description="time with work and without a step that means stuck")
    ticket_key: SecretStr = Field(
        SecretStr(""),
        description="the mesh's key, as its routers have it: then it takes only what a router sent or reserved; "
        "several, separated by commas, while it is changed",
    )
    max_waiting: int = Field(256, ge=0, description="sequences that may wait for the engine; then it refuses")
    http2: Http2 = Field("stoker", description="whose HTTP/2 serves clients: Stoker's own, or gRPC's")
    reflection: bool = Field(False, description="serve gRPC reflection, for grpcurl and the like")
    otlp_endpoint: str = Field("", description="where to send traces by OTLP/gRPC, host:port or URL; default: nowhere")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")

    @property
    def served_model(self) -> str:
        """The name that requests call the model by."""
        return self.model_name or Path(self.model).name

    def base_of(self, adapter: AdapterEntry) -> str:
        """The name of the model that an adapter belongs to."""
        return adapter.base or self.served_model

    def adapters_of(self, entry: ModelEntry) -> int:
        """How many adapters of a model may be hot at once; 0 where it has none."""
        return self.max_adapters if any(self.base_of(each) == entry.served_model for each in self.adapters) else 0

    @property
    def entries(self) -> tuple[ModelEntry, ...]:
        """All models, `model` first."""
        return (ModelEntry(model=self.model, name=self.model_name, share=None), *self.models)

    def share_of(self, entry: ModelEntry) -> float:
        """What of the device's memory a model takes while it is hot."""
        return entry.share if entry.share is not None else self.memory_budget / self.max_hot

    def advertised(self, port: int) -> str:
        """Where routers reach the server that listens on `port`: host:port."""
        host = self.advertise_address or self.listen_host
        if host.count(":") == 1 or (host.startswith("[") and "]:" in host):
            return host
        return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"

    def id_at(self, port: int) -> str:
        """The server's id when it listens on `port`."""
        return self.server_id or f"{socket.gethostname()}-{port}"

    @field_validator("ticket_key")
    @classmethod
    def _keys(cls, value: SecretStr) -> SecretStr:
        TicketKeys.parse(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _named_apart(self) -> Self:
        models = [entry.served_model for entry in self.entries]
        names = [*models, *(adapter.name for adapter in self.adapters)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"models are called alike: {', '.join(twice)}; give names: `NAME=PATH`")
        for adapter in self.adapters:
            if self.base_of(adapter) not in models:
                text = f"the adapter {adapter.name!r} belongs to {adapter.base!r}, and the models are"
                raise ValueError(f"{text} {', '.join(models)}; its base is one of them")
        return self

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.listen_host in _WILDCARDS and not self.advertise_address:
            raise ValueError(
                f"listen_host is {self.listen_host!r}, which routers cannot call: "
                "set advertise_address to this host's name or address"
            )
        return self


def _prefixed(prefix: str, engine: type[BaseModel]) -> dict[str, Any]:
    return {
        f"{prefix}_{key}": (field.annotation, field)
        for key, field in engine.model_fields.items()
        if key not in _SAID_ELSEWHERE
    }


# The engines' own keys stand beside the server's, with the engine's name in front: `--sim-max-streams`.
CommandSettings = cast(
    type[ServerSettings],
    create_model(
        "CommandSettings",
        __base__=ServerSettings,
        __doc__=ServerSettings.__doc__,
        **_prefixed("sim", SimSettings),
        **_prefixed("vllm", VllmSettings),
    ),
)


def _own(settings: ServerSettings, prefix: str) -> dict[str, Any]:
    start = f"{prefix}_"
    return {key.removeprefix(start): value for key, value in settings if key.startswith(start)}


def check_engine(settings: ServerSettings) -> None:
    """Raise SettingsError where the chosen engine's keys contradict each other."""
    try:
        if settings.engine == "sim":
            sim_settings(settings)
        else:
            vllm_settings(settings)
    except ValidationError as error:
        lines = [f"  {settings.engine}: {detail['msg'].removeprefix('Value error, ')}" for detail in error.errors()]
        raise SettingsError("\n".join(["the settings of model_server cannot be used:", *lines])) from None


def sim_settings(settings: ServerSettings) -> SimSettings:
    """The simulator's part of a CommandSettings."""
    return SimSettings(max_adapters=settings.max_adapters, **_own(settings, "sim"))


def vllm_settings(settings: ServerSettings, entry: ModelEntry | None = None) -> VllmSettings:
    """vLLM's part of a CommandSettings, for one of the models (default: the first)."""
    own = _own(settings, "vllm")
    chosen = entry or settings.entries[0]
    if settings.models:
        # Several share the GPU: each has its share, whatever one alone would take.
        own["gpu_memory_utilization"] = settings.share_of(chosen)
        own["sleep_mode"] = True
    return VllmSettings(
        model=chosen.model,
        served_model_name=chosen.served_model,
        otlp_traces_endpoint=settings.otlp_endpoint or None,
        max_adapters=settings.adapters_of(chosen),
        **own,
    )
