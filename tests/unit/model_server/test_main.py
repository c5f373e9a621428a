"""What `python -m model_server` puts around a server."""

import gc
from typing import Any

import pytest

from model_server import __main__ as command
from model_server.config import CommandSettings
from stoker_common.settings import load

pytestmark = pytest.mark.unit


async def test_what_was_loaded_is_left_alone_by_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each of its rounds over all that vLLM brought, a second long, is a pause of all streams and heartbeats."""
    told: dict[str, Any] = {}

    class Server:
        def __init__(self, *_: Any, **named: Any) -> None:
            told.update(named)

        async def run(self) -> int:
            told["settle"]()
            return 0

        def stop(self) -> None:
            return

    monkeypatch.setattr(command, "ModelServer", Server)
    thresholds, frozen = gc.get_threshold(), gc.get_freeze_count()
    settings = load(CommandSettings, "model_server", ["--engine", "sim", "--model", "m", "--metrics-port", "-1"])
    try:
        assert await command.serve(settings) == 0
        assert gc.get_freeze_count() > frozen
        assert gc.get_threshold()[0] > thresholds[0]
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
