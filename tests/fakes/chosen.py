"""What a run of the tests chose from outside, by the variables that the processes read themselves."""

import os

from stoker_common.channel import Http2
from stoker_common.settings import env_name


def http2(section: str) -> Http2:
    """Whose HTTP/2 routers (`router`) and model servers (`model_server`) of tests use: all suites run with either,
    as `STOKER_ROUTER_HTTP2=grpc STOKER_MODEL_SERVER_HTTP2=grpc pytest`."""
    return "grpc" if os.environ.get(env_name(section, "http2")) == "grpc" else "stoker"
