"""A server's engines as one: what all of them can do, the largest of what they can hold, their figures together."""

from collections.abc import Iterable
from dataclasses import replace

from model_server.engine import EngineError, EngineInfo, EngineLoad
from model_server.residency.held import Held


def info_of(models: Iterable[Held]) -> EngineInfo:
    """What the engines are. Streams are not summed: no single model takes more than its own engine's.

    Raises EngineError where none was loaded yet.
    """
    infos = [each.info for each in models if each.info is not None]
    if not infos:
        raise EngineError("no model was loaded yet")
    return replace(
        infos[0],
        max_streams=max(info.max_streams for info in infos),
        kv_tokens=max(info.kv_tokens for info in infos),
        step_tokens=min(info.step_tokens for info in infos),
        resume_modes=tuple(mode for mode in infos[0].resume_modes if all(mode in i.resume_modes for i in infos)),
        exact_modes=tuple(mode for mode in infos[0].exact_modes if all(mode in i.exact_modes for i in infos)),
    )


def load_of(models: Iterable[Held]) -> EngineLoad:
    """Their figures together."""
    loads = [each.load() for each in models]
    return EngineLoad(
        sum(load.steps for load in loads),
        sum(load.running for load in loads),
        sum(load.waiting for load in loads),
        max((load.kv_usage for load in loads), default=0.0),
    )
