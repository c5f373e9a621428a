"""The SDK and the `stoker` command. `from stoker_client import Client` is where to begin."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stoker_client.client import Client
    from stoker_client.errors import StokerError
    from stoker_client.options import Options, Turn
    from stoker_client.results import Chunk, Completion
    from stoker_client.stream import Stream
    from stoker_common.refusal import Code

__all__ = ["Chunk", "Client", "Code", "Completion", "Options", "StokerError", "Stream", "Turn"]

_HOME = {
    "Chunk": "stoker_client.results",
    "Client": "stoker_client.client",
    "Code": "stoker_common.refusal",
    "Completion": "stoker_client.results",
    "Options": "stoker_client.options",
    "StokerError": "stoker_client.errors",
    "Stream": "stoker_client.stream",
    "Turn": "stoker_client.options",
}


def __getattr__(name: str) -> object:
    """Imports a name when it is first asked for (PEP 562): the command shares this package and must start fast."""
    if name not in _HOME:
        raise AttributeError(f"module 'stoker_client' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
