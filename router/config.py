"""The router's settings, section `[router]`. How they are given: docs/configuration.md."""

from typing import Literal

from pydantic import Field, SecretStr, field_validator

from discovery.consul_address import ConsulAddress
from stoker_common.channel import Http2
from stoker_common.settings import Settings
from stoker_common.tickets import TicketKeys

PolicyName = Literal["stoker", "round-robin", "least-outstanding"]


class RouterSettings(Settings):
    """One router: a process, or several that share its port."""

    zone: str = Field("zone-a", min_length=1, description="zone the router serves first: its Consul datacenter")
    router_id: str = Field("", description="name in status, traces and logs; default: router-<zone>")
    listen_host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    listen_port: int = Field(7070, ge=0, le=65535, description="port for gRPC; 0 takes any free one")
    processes: int = Field(
        1, ge=0, le=256, description="processes that share the port, each on a core of its own; 0: as many as cores"
    )
    advertise_address: str = Field(
        "", description="host or host:port for clients; default: where it listens, or this host's name"
    )
    metrics_host: str = Field("127.0.0.1", description="address for Prometheus to scrape")
    metrics_port: int = Field(9070, ge=-1, le=65535, description="port for Prometheus; 0 takes any free one, -1 none")
    consul_address: ConsulAddress = Field(
        "127.0.0.1:8500", min_length=1, description="the zone's Consul agent: host:port or URL"
    )
    zones: tuple[str, ...] = Field((), description="zones to watch beside its own; default: all that Consul knows")
    policy: PolicyName = Field(
        "stoker",
        description="how a server is chosen; all but `stoker` are blind to caches and costs, to compare it with",
    )
    leave_zone_ms: float = Field(50.0, ge=0, description="cost of leaving the zone, beside the way itself, in ms")
    near_share: float = Field(0.05, ge=0, le=1, description="candidates within this share of the cheapest are alike")
    sessions: int = Field(100_000, ge=1, description="sessions remembered, the most recent, for servers without a link")
    max_attempts: int = Field(3, ge=1, le=10, description="attempts of a request before its first chunk")
    queue_length: int = Field(256, ge=0, description="requests that may wait for one model; then it refuses")
    waiting_per_server: int = Field(
        4,
        ge=0,
        description="streams a server is given beyond its batch; once all have so many, the rest waits in the router",
    )
    hold_s: float = Field(
        5.0, ge=0, description="seconds a request waits while no server can take its model, such as in a failover"
    )
    retry_share: float = Field(0.2, ge=0, description="retries before the first chunk, as a share of the requests")
    retry_per_s: float = Field(10.0, ge=0, description="retries a second beside that share")
    ejection_failures: int = Field(5, ge=1, description="failures in a row that eject a server")
    ejection_base_s: float = Field(30.0, gt=0, description="seconds of a first ejection; each in a row adds as many")
    ejection_max_s: float = Field(300.0, gt=0, description="longest ejection in seconds")
    maintenance_grace_s: float = Field(
        0.0, ge=0, description="how long streams stay on a server in maintenance before they are moved, in seconds"
    )
    ticket_key: SecretStr = Field(
        SecretStr(""),
        description="the mesh's key, the same on its routers and servers, at least 32 characters: signs what lets "
        "requests in at servers; several, separated by commas, while it is changed: the first one signs",
    )
    ticket_seconds: float = Field(
        10.0, ge=5, description="how long a client that asked Route has to begin at the server, in seconds"
    )
    drain_seconds: float = Field(30.0, ge=0, description="how long SIGTERM lets requests in flight end, in seconds")
    http2: Http2 = Field(
        "stoker", description="whose HTTP/2 serves clients and reaches servers: Stoker's own, or gRPC's"
    )
    reflection: bool = Field(False, description="serve gRPC reflection, for grpcurl and the like")
    otlp_endpoint: str = Field("", description="where to send traces by OTLP/gRPC, host:port or URL; default: nowhere")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")

    @field_validator("ticket_key")
    @classmethod
    def _keys(cls, value: SecretStr) -> SecretStr:
        TicketKeys.parse(value.get_secret_value())
        return value
