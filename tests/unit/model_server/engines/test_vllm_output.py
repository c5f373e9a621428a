"""vLLM's outputs as the engine's."""

from types import SimpleNamespace
from typing import Any

import pytest

from model_server.engine import EngineDead, EngineRequest
from model_server.engines.vllm_output import EngineFailed, engine_output
from stoker.v1 import generation_pb2, inference_pb2

pytestmark = pytest.mark.unit


def request(**sampling: Any) -> EngineRequest:
    return EngineRequest("r", (1, 2, 3), generation_pb2.Sampling(**sampling), max_tokens=8)


def entry(logprob: float, rank: int | None, text: str | None = "x") -> Any:
    return SimpleNamespace(logprob=logprob, rank=rank, decoded_token=text)


def vllm_output(**completion: Any) -> Any:
    fields = {"text": "a", "token_ids": [4], "logprobs": None, "finish_reason": None, "stop_reason": None}
    return SimpleNamespace(
        outputs=[SimpleNamespace(**fields | completion)],
        prompt_logprobs=None,
        num_cached_tokens=None,
        metrics=None,
    )


@pytest.mark.parametrize(
    ("said", "reason", "finish", "stop_string", "stop_token"),
    [
        (None, None, inference_pb2.FINISH_REASON_UNSPECIFIED, None, None),
        ("length", None, inference_pb2.FINISH_REASON_LENGTH, None, None),
        ("repetition", None, inference_pb2.FINISH_REASON_REPETITION, None, None),
        ("stop", None, inference_pb2.FINISH_REASON_STOP, None, None),
        ("stop", "END", inference_pb2.FINISH_REASON_STOP, "END", None),
        ("stop", 7, inference_pb2.FINISH_REASON_STOP, None, 7),
        ("stop", 2, inference_pb2.FINISH_REASON_STOP, None, None),  # The model's own, not the request's.
    ],
)
def test_finish_reasons(said: str | None, reason: Any, finish: int, stop_string: str | None, stop_token: Any) -> None:
    output = engine_output(vllm_output(finish_reason=said, stop_reason=reason), request(stop_token_ids=[7]))
    assert (output.finish_reason, output.stop_string, output.stop_token_id) == (finish, stop_string, stop_token)


def test_an_abort_that_nobody_asked_for_is_the_engines_death() -> None:
    with pytest.raises(EngineDead):
        engine_output(vllm_output(finish_reason="abort"), request())


@pytest.mark.parametrize("reason", ["error", "something new"])
def test_an_end_by_failure_is_an_error_that_may_be_tried_again(reason: str) -> None:
    with pytest.raises(EngineFailed) as caught:
        engine_output(vllm_output(finish_reason=reason), request())
    assert caught.value.retryable


def test_the_likeliest_are_sorted_and_the_token_stands_apart() -> None:
    place = {9: entry(-3.0, 5), 4: entry(-1.0, 2), 3: entry(-0.5, 1)}
    output = engine_output(vllm_output(logprobs=[place]), request(logprobs=2))
    (told,) = output.logprobs
    assert (told.token.token_id, told.token.rank, told.token.text) == (9, 5, "x")
    assert [(top.token_id, top.rank) for top in told.top] == [(3, 1), (4, 2)]


def test_a_token_among_the_likeliest_is_told_in_both_places() -> None:
    place = {3: entry(-0.5, 1), 4: entry(-1.0, 2)}
    (told,) = engine_output(vllm_output(logprobs=[place]), request(logprobs=2)).logprobs
    assert told.token.token_id == 3
    assert [top.token_id for top in told.top] == [3, 4]


def test_with_zero_logprobs_only_the_tokens_own_is_told() -> None:
    (told,) = engine_output(vllm_output(logprobs=[{3: entry(-0.5, 1)}]), request(logprobs=0)).logprobs
    assert (told.token.token_id, len(told.top)) == (3, 0)


def test_listed_ids_have_no_rank_since_vllm_numbers_them() -> None:
    place = {9: entry(-3.0, 1), 5: entry(-7.0, 2), 6: entry(-8.0, 3)}
    (told,) = engine_output(vllm_output(logprobs=[place]), request(logprob_token_ids=[6, 5])).logprobs
    assert [(top.token_id, top.rank) for top in told.top] == [(6, 0), (5, 0)]
    assert told.token.logprob == -3.0


@pytest.mark.parametrize(("start", "told_ids"), [(None, [2, 3]), (1, [2, 3]), (2, [3]), (9, [])])
def test_prompt_logprobs_begin_at_the_second_token_or_where_asked(start: int | None, told_ids: list[int]) -> None:
    output = vllm_output()
    output.prompt_logprobs = [None, {2: entry(-1.0, 1)}, {3: entry(-1.0, 1)}]
    sampling = {"prompt_logprobs": 0} | ({} if start is None else {"prompt_logprob_start": start})
    told = engine_output(output, request(**sampling)).prompt_logprobs
    assert [place.token.token_id for place in told] == told_ids


def test_prompt_ids_of_ones_own_are_told_beside() -> None:
    output = vllm_output()
    output.prompt_logprobs = [None, {2: entry(-1.0, 1)}, {3: entry(-1.0, 1)}]
    output.prompt_token_id_logprobs = [[-4.0, -5.0], [-6.0, float("-inf")]]
    rows = [generation_pb2.TokenIds(ids=[7, 8]), generation_pb2.TokenIds(ids=[9])]
    told = engine_output(output, request(prompt_logprob_token_ids=rows)).prompt_logprobs
    assert [[(top.token_id, top.logprob) for top in place.top] for place in told] == [
        [(7, -4.0), (8, -5.0)],
        [(9, -6.0)],
    ]


def test_queueing_and_the_prompts_computing_are_told_once_they_are_over() -> None:
    output = vllm_output()
    assert engine_output(output, request()).queue_ms is None
    output.metrics = SimpleNamespace(queued_ts=10.0, scheduled_ts=0.0)
    assert engine_output(output, request()).queue_ms is None
    output.metrics = SimpleNamespace(queued_ts=10.0, scheduled_ts=10.25)
    assert engine_output(output, request()).queue_ms == pytest.approx(250.0)
    assert engine_output(output, request()).prefill_ms is None
    output.metrics = SimpleNamespace(queued_ts=10.0, scheduled_ts=10.25, first_token_ts=10.75)
    assert engine_output(output, request()).prefill_ms == pytest.approx(500.0)


def test_waiting_for_the_step_that_ran_is_queueing() -> None:
    output = vllm_output()
    output.metrics = SimpleNamespace(queued_ts=10.0, scheduled_ts=10.25)
    assert engine_output(output, request(), handed_s=9.5).queue_ms == pytest.approx(750.0)
