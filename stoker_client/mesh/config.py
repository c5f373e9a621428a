"""Settings of the local mesh: section [mesh]."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from stoker_common.settings import Settings

# Each zone has a block of ports: its router, the router's metrics, Consul's servers, then two for each model server.
ZONE_PORTS = 100
CONSUL_AT = 10
CONSUL_PORTS = 4
SERVERS_AT = 30
MOST_SERVERS = (ZONE_PORTS - SERVERS_AT) // 2
MOST_ZONES = 8
DEFAULT_MODEL = Path(".cache/models/SmolLM2-135M-Instruct")


class MeshSettings(Settings):
    """A mesh on this machine: Consul datacenters, model servers, a router a zone."""

    zones: int = Field(
        default=2, ge=1, le=MOST_ZONES, description="How many zones, each a Consul datacenter of its own"
    )
    servers_per_zone: int = Field(default=1, ge=1, le=MOST_SERVERS, description="Model servers in each zone")
    router_processes: int = Field(
        default=1, ge=0, le=256, description="Processes of each zone's router; 0: as many as cores"
    )
    engine: Literal["vllm", "sim"] = Field(default="vllm", description="What generates: real vLLM, or the simulator")
    model: str = Field(
        default="", description=f"Model folder or Hugging Face id; none: $STOKER_MODEL, else {DEFAULT_MODEL}"
    )
    adapters: tuple[str, ...] = Field(
        default=(),
        description="LoRA adapters of every server: `NAME=PATH`, or `NAME=PATH:BASE` where BASE is not the first model",
    )
    consul_servers: int = Field(
        default=1, description="Consul servers in each zone, 1 or 3 (3 survive the loss of one)"
    )
    port_base: int = Field(
        default=7070,
        ge=1024,
        le=65536 - MOST_ZONES * ZONE_PORTS,
        description=f"The first zone's router listens here; zone by zone {ZONE_PORTS} ports further on",
    )
    run_folder: Path = Field(
        default=Path(".cache/mesh"), description="Where logs, Consul's data and the state file are"
    )
    ready_timeout_s: float = Field(
        default=300.0, gt=0, description="How long all of it may take to come up, in seconds"
    )
    drain_s: float = Field(
        default=30.0,
        ge=0,
        description="How long a router or a server may finish what it does when it is ended, in seconds",
    )
    max_failures: int = Field(
        default=5, ge=1, description="A process that ends this often within restart_window_s is given up"
    )
    restart_window_s: float = Field(default=300.0, gt=0, description="The window for max_failures, in seconds")

    @field_validator("adapters")
    @classmethod
    def _adapters_have_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            name, _, path = each.partition("=")
            if not name.strip() or not path.strip():
                raise ValueError(f"{each!r} is no adapter: write NAME=PATH, or NAME=PATH:BASE")
        return value

    @model_validator(mode="after")
    def _consul_can_vote(self) -> Self:
        if self.consul_servers not in (1, 3):
            raise ValueError(
                f"consul_servers is {self.consul_servers}; it must be 1 or 3: an even number survives no more"
            )
        return self
