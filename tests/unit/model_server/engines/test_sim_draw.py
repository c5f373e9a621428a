"""The simulator's tokens and logprobs."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_server.engine import EngineRefused
from model_server.engines.sim_draw import TokenSource
from model_server.engines.sim_tokenizer import END_OF_TEXT, FIRST_LEAD, FIRST_PLAIN, FIRST_TAIL, SimTokenizer
from stoker.v1 import generation_pb2

pytestmark = pytest.mark.unit

TOKENIZER = SimTokenizer(32_000)
PROMPT = (300, 301, 302)
Sampling = generation_pb2.Sampling


def _source(sampling: Sampling | None = None, prompt: tuple[int, ...] = PROMPT, eos: float = 0.0) -> TokenSource:
    return TokenSource(prompt, sampling or Sampling(), TOKENIZER, eos)


def _tokens(source: TokenSource, count: int) -> list[int]:
    return [source.token(place) for place in range(count)]


def test_tokens_are_the_same_in_every_process() -> None:
    # Written down: a change needs a new numerics class.
    assert _tokens(_source(), 6) == [30359, 28556, 10400, 29602, 11231, 15943]


def test_prompt_and_seed_make_the_tokens_and_nothing_else_does() -> None:
    plain = _tokens(_source(), 32)
    assert _tokens(_source(Sampling(temperature=0.3, top_p=0.5, n=4, max_tokens=9, logprobs=2)), 32) == plain
    others = [
        _tokens(_source(prompt=(300, 301)), 32),
        _tokens(_source(Sampling(seed=0)), 32),
        _tokens(_source(Sampling(seed=-1)), 32),
    ]
    assert len({tuple(tokens) for tokens in [plain, *others]}) == 4


def test_leads_are_followed_by_tails() -> None:
    tokens = _tokens(_source(), 20_000)
    leads = [place for place, token_id in enumerate(tokens) if FIRST_LEAD <= token_id < FIRST_TAIL]
    tails = [place for place, token_id in enumerate(tokens) if FIRST_TAIL <= token_id < FIRST_PLAIN]
    assert [place + 1 for place in leads] == tails
    # One pair of places in 64.
    assert 100 < len(leads) < 220
    assert all(0 <= token_id < TOKENIZER.vocabulary for token_id in tokens)


def test_end_of_text_comes_as_often_as_set() -> None:
    assert Counter(_tokens(_source(eos=0.25), 20_000))[END_OF_TEXT] == pytest.approx(5000, rel=0.1)
    assert END_OF_TEXT not in _tokens(_source(), 20_000)


@given(st.integers(0, 2**62), st.integers(0, 200))
def test_before_min_tokens_nothing_ends_the_output(seed: int, min_tokens: int) -> None:
    free = _tokens(_source(Sampling(seed=seed), eos=0.5), 200)
    stops = free[:100:3]
    held = _tokens(_source(Sampling(seed=seed, min_tokens=min_tokens, stop_token_ids=stops), eos=0.5), 200)
    assert not {END_OF_TEXT, *stops} & set(held[:min_tokens])
    assert held[min_tokens:] == free[min_tokens:]


def test_only_allowed_tokens_occur() -> None:
    source = _source(Sampling(allowed_token_ids=[END_OF_TEXT, 500, 900], min_tokens=50))
    tokens = _tokens(source, 400)
    assert set(tokens[:50]) == {500, 900}
    assert set(tokens) == {END_OF_TEXT, 500, 900}
    assert {entry.token_id for entry in source.logprobs(0, 500, 20).top} == {END_OF_TEXT, 500, 900}


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(allowed_token_ids=[END_OF_TEXT], min_tokens=1),
        Sampling(allowed_token_ids=[500], stop_token_ids=[500], min_tokens=1),
        Sampling(stop_token_ids=range(TOKENIZER.vocabulary), min_tokens=1),
    ],
)
def test_min_tokens_that_no_token_can_keep_are_refused(sampling: Sampling) -> None:
    with pytest.raises(EngineRefused) as refusal:
        _source(sampling)
    assert refusal.value.field == "sampling.min_tokens"
    assert not refusal.value.unsupported


def test_a_single_token_that_does_not_end_the_output_is_enough() -> None:
    stops = [token_id for token_id in range(TOKENIZER.vocabulary) if token_id != 777]
    assert _tokens(_source(Sampling(stop_token_ids=stops, min_tokens=3)), 3) == [777, 777, 777]


def test_logprobs_are_of_distinct_tokens_the_drawn_one_first() -> None:
    source = _source()
    logprobs = source.logprobs(4, source.token(4), 20)
    assert logprobs.token.token_id == source.token(4) == logprobs.top[0].token_id
    assert logprobs.token.text == TOKENIZER.token_text(source.token(4))
    assert [entry.rank for entry in logprobs.top] == list(range(1, 21))
    assert len({entry.token_id for entry in logprobs.top}) == 20
    assert logprobs == source.logprobs(4, source.token(4), 20)
