"""Whether and how a broken stream goes on elsewhere. Pure."""

from collections.abc import Collection
from dataclasses import dataclass

from discovery.endpoint import Endpoint
from stoker.v1 import generation_pb2
from stoker_common.refusal import Refusal, unavailable
from stoker_common.resuming import MODES, REPLAY, Mode, fitting
from stoker_common.transcript import Transcript


@dataclass(frozen=True, slots=True)
class ResumeRules:
    """`max_replay_ms` bounds the silence of a replay: 1,000 tokens take as long as decoding them took."""

    max_replay_ms: float = 10_000.0


def wanted(generation: generation_pb2.Generation) -> bool:
    """Whether the request goes on elsewhere when its server fails. It does, unless it says otherwise."""
    return generation.on_server_failure != generation_pb2.ON_SERVER_FAILURE_FAIL


def mode_on(
    endpoint: Endpoint, generation: generation_pb2.Generation, transcript: Transcript, itl_ms: float, rules: ResumeRules
) -> Mode | None:
    """How `endpoint` would go on with the stream; None if it cannot, or not as the request wants it."""
    exact = generation.on_server_failure == generation_pb2.ON_SERVER_FAILURE_EXACT
    if exact and endpoint.numerics_class != transcript.numerics_class:
        return None
    offered = {MODES.get(name) for name in endpoint.resume_modes}
    longest = max((len(received.token_ids) for received in transcript.outputs.values()), default=0)
    exact_here = [MODES[name] for name in endpoint.exact_modes if name in MODES]
    for mode in fitting(generation, exact_here):
        if mode in offered and not (mode == REPLAY and longest * itl_ms > rules.max_replay_ms):
            return mode
    return None


def continued(
    generation: generation_pb2.Generation, transcript: Transcript, mode: Mode, tried: Collection[str]
) -> generation_pb2.Generation:
    """The request that goes on where `transcript` ends."""
    request = generation_pb2.Generation()
    request.CopyFrom(generation)
    # The ids say it all, and a long text would travel for nothing.
    request.ClearField("prompt")
    request.resume.CopyFrom(transcript.resume_state(mode))
    request.resume.servers_tried.extend(tried)
    return request


def impossible(why: str) -> Refusal:
    """The stream ends here, and its caller hears why."""
    return unavailable(f"the stream broke and cannot go on elsewhere: {why}", reason="NOT_RESUMABLE")
