"""By which modes a broken generation may go on, for routers that choose a server and servers that are asked to. Pure.

| mode | keeps | price |
| --- | --- | --- |
| restore | everything | one prefill |
| prefill | a valid continuation | one prefill |
| replay | everything | a decode step for each token that was emitted |
"""

from collections.abc import Collection
from typing import TypeAlias

from stoker.v1 import endpoint_pb2, generation_pb2, inference_pb2

Mode: TypeAlias = endpoint_pb2.ResumeMode.ValueType

PREFILL = endpoint_pb2.RESUME_MODE_PREFILL
REPLAY = endpoint_pb2.RESUME_MODE_REPLAY
RESTORE = endpoint_pb2.RESUME_MODE_RESTORE

# As the catalog spells them.
MODES = {"prefill": PREFILL, "replay": REPLAY, "restore": RESTORE}

# Fields of Sampling by which the next token depends on more than the tokens before it: on which of them are output, or
# on a generator's state, or on text that was held back.
_STATEFUL = frozenset(
    {
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "bad_words",
        "stop",
        "thinking_token_budget",
        "repetition_detection",
    }
)


def is_stateful(generation: generation_pb2.Generation) -> bool:
    """Whether prompt and emitted tokens together, taken as a prompt, would lose something of the request."""
    if generation.HasField("structured_output"):
        return True
    sampling = generation.sampling
    if sampling.HasField("repetition_penalty") and sampling.repetition_penalty != 1.0:
        return True
    return any(field.name in _STATEFUL for field, _ in sampling.ListFields())


def fitting(generation: generation_pb2.Generation) -> tuple[Mode, ...]:
    """The modes that keep what the request asks for, cheapest first."""
    exact = generation.on_server_failure == generation_pb2.ON_SERVER_FAILURE_EXACT
    return (RESTORE, REPLAY) if exact or is_stateful(generation) else (RESTORE, PREFILL, REPLAY)


def exactness(modes: Collection[Mode], numerics_classes: Collection[str]) -> "inference_pb2.Exactness.ValueType":
    """How an answer relates to what one server alone would have sent, by how it was taken over and by whom."""
    if not modes:
        return inference_pb2.EXACTNESS_UNSPECIFIED
    if PREFILL in modes:
        return inference_pb2.EXACTNESS_VALID
    if len(set(numerics_classes)) == 1:
        return inference_pb2.EXACTNESS_BYTES_EXACT
    return inference_pb2.EXACTNESS_STATE_EXACT
