"""The whole suite runs over either HTTP/2: `STOKER_CLIENT_HTTP2=stoker`, as the command itself reads it."""

from types import FunctionType
from typing import cast

import pytest

from stoker_client import Client
from tests.fakes.chosen import http2


@pytest.fixture(autouse=True)
def _reached_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that do not say otherwise reach the mesh by what was chosen."""
    made = cast(FunctionType, vars(Client)["__init__"])
    monkeypatch.setattr(made, "__kwdefaults__", {**(made.__kwdefaults__ or {}), "http2": http2("client")})
