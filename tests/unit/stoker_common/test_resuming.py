from typing import Any

import pytest

from stoker.v1 import generation_pb2 as pb
from stoker.v1 import inference_pb2
from stoker_common.resuming import PREFILL, REPLAY, RESTORE, Mode, continuation, exactness, fitting

VALID, STATE, BYTES = (
    inference_pb2.EXACTNESS_VALID,
    inference_pb2.EXACTNESS_STATE_EXACT,
    inference_pb2.EXACTNESS_BYTES_EXACT,
)
GPU: tuple[Mode, ...] = (RESTORE, REPLAY)
CPU: tuple[Mode, ...] = (REPLAY,)


@pytest.mark.parametrize(
    ("sampling", "wish", "exact", "modes"),
    [
        # Nothing to be exact about: the cheapest that is valid.
        ({}, 0, GPU, (RESTORE, PREFILL, REPLAY)),
        ({"temperature": 0.8}, 0, CPU, (RESTORE, PREFILL, REPLAY)),
        # Asked twice, the same: the bytes first, the state if they cannot be had.
        ({"temperature": 0.0}, 0, GPU, (RESTORE, REPLAY, PREFILL)),
        ({"temperature": 0.0}, 0, CPU, (REPLAY, RESTORE, PREFILL)),
        ({"seed": 1}, 0, GPU, (RESTORE, REPLAY)),
        ({"seed": 1}, 0, CPU, (REPLAY, RESTORE)),
        ({"frequency_penalty": 1.0}, 0, CPU, (REPLAY, RESTORE)),
        ({"repetition_penalty": 1.0}, 0, CPU, (RESTORE, PREFILL, REPLAY)),
        ({"thinking_token_budget": 9}, 0, GPU, (REPLAY,)),
        # The caller insists on the bytes.
        ({}, pb.ON_SERVER_FAILURE_EXACT, GPU, (RESTORE, REPLAY)),
        ({}, pb.ON_SERVER_FAILURE_EXACT, CPU, (REPLAY,)),
        ({"seed": 1}, pb.ON_SERVER_FAILURE_EXACT, (), ()),
    ],
)
def test_what_fits_a_request_best_first(
    sampling: dict[str, Any], wish: int, exact: tuple[Mode, ...], modes: tuple[Mode, ...]
) -> None:
    asked = pb.Generation(sampling=pb.Sampling(**sampling), on_server_failure=wish)  # type: ignore[arg-type]
    assert fitting(asked, exact) == modes


def test_structured_output_needs_the_state() -> None:
    asked = pb.Generation(structured_output=pb.StructuredOutput(regex="a+"))
    assert PREFILL not in fitting(asked, ())


@pytest.mark.parametrize(
    ("mode", "exact", "how"),
    [(PREFILL, GPU, VALID), (RESTORE, GPU, BYTES), (RESTORE, CPU, STATE), (REPLAY, CPU, BYTES), (REPLAY, (), STATE)],
)
def test_how_exact_a_continuation_is(mode: Mode, exact: tuple[Mode, ...], how: int) -> None:
    assert continuation(mode, exact) == how


@pytest.mark.parametrize(
    ("continuations", "classes", "how"),
    [
        ([], ["n"], inference_pb2.EXACTNESS_UNSPECIFIED),
        ([BYTES], ["n", "n"], BYTES),
        ([BYTES], ["n", "another"], STATE),
        ([BYTES, STATE], ["n", "n"], STATE),
        ([BYTES, VALID, STATE], ["n"], VALID),
    ],
)
def test_an_answer_is_as_exact_as_its_worst_part(continuations: list[Any], classes: list[str], how: int) -> None:
    assert exactness(continuations, classes) == how
