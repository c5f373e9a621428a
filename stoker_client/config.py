"""Settings of the commands that call a mesh: section [client]."""

from typing import Literal

from pydantic import Field

from stoker_common.channel import Http2
from stoker_common.settings import Settings

DEFAULT_ROUTER = "127.0.0.1:7070"


class ClientSettings(Settings):
    """Where the mesh is, and how long to wait for it."""

    router: tuple[str, ...] = Field(
        default=(),
        description="Routers' addresses, tried in order: host:port, name:port (all of the name's DNS records), or "
        f"consul://host:port; none: the local mesh's, else {DEFAULT_ROUTER}",
    )
    model: str = Field(default="", description="The model to ask; none: the only one there is")
    mode: Literal["auto", "direct", "relay"] = Field(
        default="relay",
        description="How answers come: through routers, from servers that routers name, or from servers where they can "
        "be reached and else through routers (auto)",
    )
    http2: Http2 = Field(
        default="grpc", description="Whose HTTP/2 reaches the mesh: gRPC's own, or Stoker's, for many streams"
    )
    timeout_s: float = Field(default=300.0, gt=0, description="What a whole call may take, in seconds")
    connect_timeout_s: float = Field(
        default=5.0, gt=0, description="What connecting to one router may take, in seconds"
    )
    otlp_endpoint: str = Field(
        default="", description="Where to send traces by OTLP/gRPC, host:port or URL; none: nowhere"
    )
