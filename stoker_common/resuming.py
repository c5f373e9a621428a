"""By which modes a broken generation may go on, for routers that choose a server and servers that are asked to. Pure.

| mode | keeps | price |
| --- | --- | --- |
| restore | everything, where prefill and decode round alike; else every state | one prefill |
| prefill | a valid continuation | one prefill |
| replay | everything | a decode step for each token that was emitted |
"""

from collections.abc import Collection, Iterable
from typing import TypeAlias

from stoker.v1 import endpoint_pb2, generation_pb2, inference_pb2

Mode: TypeAlias = endpoint_pb2.ResumeMode.ValueType
Exactness: TypeAlias = inference_pb2.Exactness.ValueType

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


def is_repeatable(generation: generation_pb2.Generation) -> bool:
    """Whether asking twice should give the same: then the bytes of a continuation can be right or wrong."""
    sampling = generation.sampling
    return sampling.HasField("seed") or (sampling.HasField("temperature") and sampling.temperature == 0.0)


def fitting(generation: generation_pb2.Generation, exact: Collection[Mode] = (RESTORE, REPLAY)) -> tuple[Mode, ...]:
    """The modes that keep what the request asks for, best first, where `exact` are those that keep the bytes.

    Where prefill and decode round differently (bf16 on processors), restore keeps every state and not every byte; then
    replay comes before it for requests whose bytes matter.
    """
    keeping = tuple(mode for mode in (RESTORE, REPLAY) if mode in exact)
    if generation.sampling.HasField("thinking_token_budget"):
        keeping = tuple(mode for mode in keeping if mode == REPLAY)  # the others lose count of the thinking tokens
        return keeping if generation.on_server_failure == generation_pb2.ON_SERVER_FAILURE_EXACT else (REPLAY,)
    if generation.on_server_failure == generation_pb2.ON_SERVER_FAILURE_EXACT:
        return keeping
    valid = (RESTORE, REPLAY) if is_stateful(generation) else (RESTORE, PREFILL, REPLAY)
    first = keeping if is_repeatable(generation) or is_stateful(generation) else ()
    return tuple(dict.fromkeys((*first, *valid)))


# From what one server alone would have sent to what only could have been sent.
_WORSE = (
    inference_pb2.EXACTNESS_UNSPECIFIED,
    inference_pb2.EXACTNESS_BYTES_EXACT,
    inference_pb2.EXACTNESS_STATE_EXACT,
    inference_pb2.EXACTNESS_VALID,
)


def continuation(mode: Mode, exact: Collection[Mode]) -> Exactness:
    """How exact a continuation by `mode` is, on a server whose `exact` modes keep the bytes."""
    if mode == PREFILL:
        return inference_pb2.EXACTNESS_VALID
    return inference_pb2.EXACTNESS_BYTES_EXACT if mode in exact else inference_pb2.EXACTNESS_STATE_EXACT


def exactness(continuations: Iterable[Exactness], numerics_classes: Collection[str]) -> Exactness:
    """How an answer relates to what one server alone would have sent: as its worst part, given who spoke."""
    worst = max(continuations, key=_WORSE.index, default=inference_pb2.EXACTNESS_UNSPECIFIED)
    if worst == inference_pb2.EXACTNESS_BYTES_EXACT and len(set(numerics_classes)) > 1:
        return inference_pb2.EXACTNESS_STATE_EXACT
    return worst
