"""gRPC's options for every channel and server of the mesh, each with its reason. Measured: RELIABILITY.md, ADR 0033."""

from typing import Literal

Options = list[tuple[str, str | int]]
# Whose HTTP/2 serves: gRPC's, which is what the options are for, or Stoker's own (ADR 150).
Http2 = Literal["grpc", "stoker"]

# The longest prompts are a few MB of text or of token ids. What is larger is a mistake or an attack, and gRPC refuses
# it with RESOURCE_EXHAUSTED when it has read the length, not the message.
MAX_REQUEST_BYTES = 16 << 20
# Answers are the server's own, and logprobs make them large: n = 64 times thousands of tokens with 20 logprobs each.
MAX_RESPONSE_BYTES = 64 << 20
# gRPC's defaults, written down because statuses are cut to fit them (status.py): above the first a request is
# refused more often the larger it is, above the second always.
METADATA_SOFT_BYTES = 8 << 10
METADATA_HARD_BYTES = 16 << 10
# A peer that froze is noticed within ping interval + ping timeout, about 2.2 s.
PING_INTERVAL_MS = 1000
PING_TIMEOUT_MS = 2000
# How long a server lets a client be silent before it asks whether it is still there.
SERVER_PING_INTERVAL_MS = 5000


def client_options(*, ping_when_idle: bool = False) -> Options:
    """Options of a channel to a router or a server.

    `ping_when_idle` is for the few channels whose peer's death must be known before the next call (a router's to its
    servers); thousands of idle applications should not ping.
    """
    return [
        ("grpc.max_send_message_length", MAX_REQUEST_BYTES),
        ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
        ("grpc.max_metadata_size", METADATA_SOFT_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_HARD_BYTES),
        # A peer that froze or lost its cable does not close the connection. Keepalive alone took 60 s to notice while
        # data was under way; the ping timeout cuts that to 2.2 s.
        ("grpc.keepalive_time_ms", PING_INTERVAL_MS),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
        # Otherwise pings stop after two without data, in the middle of a long prefill.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", int(ping_when_idle)),
        # Retrying is the router's business: it knows which server failed, the budget and the deadline.
        ("grpc.enable_retries", 0),
        # Nor may a DNS record change how we call: a service config can bring back retries and other balancing.
        ("grpc.service_config_disable_resolution", 1),
        # A server that restarts on its port is reached again within a second, not after a back-off of two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # One connection a channel: two channels to one address do not share a fate, or a back-off.
        ("grpc.use_local_subchannel_pool", 1),
        # An HTTP proxy named in the environment is for the web; the mesh is inside.
        ("grpc.enable_http_proxy", 0),
    ]


def server_options(*, share_port: bool = False) -> Options:
    """Options of a server.

    `share_port` lets several processes listen on one port (routers). Off, a second model server on a taken port fails
    at once instead of stealing half of the first one's connections.
    """
    return [
        ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
        ("grpc.max_send_message_length", MAX_RESPONSE_BYTES),
        ("grpc.max_metadata_size", METADATA_SOFT_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_HARD_BYTES),
        # Below the clients' interval, or the server takes their pings for a flood and answers ENHANCE_YOUR_CALM.
        ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MS // 2),
        ("grpc.keepalive_permit_without_calls", 1),
        # A client that vanished without a word must not hold the engine: its calls are cancelled within 7 s.
        ("grpc.keepalive_time_ms", SERVER_PING_INTERVAL_MS),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.so_reuseport", int(share_port)),
    ]
