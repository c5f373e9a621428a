"""The whole suite runs over either HTTP/2: `STOKER_CLIENT_HTTP2=stoker`, as the command itself reads it."""

import os
from types import FunctionType
from typing import cast

import pytest

from stoker_client import Client
from stoker_common.settings import env_name


@pytest.fixture(autouse=True)
def _reached_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that do not say otherwise reach the mesh by what was chosen, if it was."""
    if chosen := os.environ.get(env_name("client", "http2")):
        made = cast(FunctionType, vars(Client)["__init__"])
        monkeypatch.setattr(made, "__kwdefaults__", {**(made.__kwdefaults__ or {}), "http2": chosen})
