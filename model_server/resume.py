"""How this server goes on with what another one began."""

from model_server.engine import EngineInfo, ResumeMode
from stoker.v1 import endpoint_pb2, generation_pb2
from stoker_common.refusal import unimplemented
from stoker_common.resuming import MODES, Mode, fitting

_BY_NUMBER = {number: ResumeMode(name) for name, number in MODES.items()}


def exact_modes(info: EngineInfo) -> tuple[Mode, ...]:
    """The engine's modes that keep the bytes, as the API numbers them."""
    return tuple(MODES[mode.value] for mode in info.exact_modes)


def resume_mode(generation: generation_pb2.Generation, info: EngineInfo) -> ResumeMode:
    """The mode that the resume state names, else the cheapest that fits. Raises Refusal if the engine has none."""
    asked = generation.resume.mode
    offered = ", ".join(mode.value for mode in info.resume_modes) or "none"
    if asked == endpoint_pb2.RESUME_MODE_UNSPECIFIED:
        for number in fitting(generation, exact_modes(info)):
            if _BY_NUMBER[number] in info.resume_modes:
                return _BY_NUMBER[number]
        text = f"no mode of this server's engine keeps what the request asks for; it has {offered}"
        raise unimplemented("generation.resume", text)
    mode = _BY_NUMBER[asked]
    if mode not in info.resume_modes:
        raise unimplemented("generation.resume.mode", f"{mode.value} is not one of this server's: {offered}")
    return mode
