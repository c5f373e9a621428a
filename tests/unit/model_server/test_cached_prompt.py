from typing import Any

import pytest

from model_server import token_chain
from model_server.cached_prompt import CachedPrompt
from model_server.engine import EngineOutput
from model_server.prefixes import CachedPrefixes
from stoker.v1 import generation_pb2 as pb
from stoker_common import prefix

TEXT = "the boilers are hot and the lamps are lit; " * 30
ANSWER = "and so is the stoker. " * 40


def cache() -> CachedPrefixes:
    return CachedPrefixes(100_000, 16, lambda block, there: None, lambda session, tokens: None)


def asked(text: str = TEXT, **sampling: Any) -> pb.Generation:
    session = pb.Session(id="s")
    return pb.Generation(model="m", text=text, session=session, sampling=pb.Sampling(**sampling))


def chain(text: str) -> prefix.Prefix:
    return prefix.of(asked(text), "m")


def run(known: CachedPrefixes, generation: pb.Generation, cached_tokens: int = 0) -> None:
    """A request whose prompt of 300 tokens was computed and answered."""
    prompt = CachedPrompt(known, generation, "m")
    prompt.began(300, cached_tokens)
    for place in range(0, len(ANSWER), 100):
        prompt.output(EngineOutput(ANSWER[place : place + 100], tuple(range(22))))
    prompt.ended()


def test_a_prompt_is_there_once_computed_and_its_answer_at_its_end() -> None:
    known = cache()
    prompt = CachedPrompt(known, asked(), "m")
    assert known.held(chain(TEXT)) == 0
    prompt.began(300, 0)
    assert known.held(chain(TEXT + ANSWER)) == len(TEXT) // 256
    assert [tokens for _, tokens in known.sessions()] == [288]
    prompt.output(EngineOutput(ANSWER, tuple(range(200))))
    prompt.ended()
    assert known.held(chain(TEXT + ANSWER)) == len(TEXT + ANSWER) // 256
    assert [tokens for _, tokens in known.sessions()] == [496]


def test_what_ended_before_it_began_leaves_nothing() -> None:
    known = cache()
    CachedPrompt(known, asked(), "m").ended()
    assert known.tokens == 0


def test_of_several_outputs_nobody_knows_which_goes_on() -> None:
    known = cache()
    run(known, asked(n=2))
    assert known.held(chain(TEXT + ANSWER)) == len(TEXT) // 256


def test_the_engines_count_is_believed() -> None:
    known = cache()
    run(known, asked())
    whole = known.held(chain(TEXT + ANSWER))
    run(known, asked(n=2), cached_tokens=0)
    # The prompt was computed anew; the answer behind it was lost with it.
    assert known.held(chain(TEXT + ANSWER)) == len(TEXT) // 256 < whole


@pytest.mark.parametrize("sampling", [{"skip_reading_prefix_cache": True}, {"prompt_logprobs": 0}])
def test_a_request_that_reads_no_cache_says_nothing_of_it(sampling: dict[str, Any]) -> None:
    known = cache()
    run(known, asked())
    whole = known.held(chain(TEXT + ANSWER))
    run(known, asked(n=2, **sampling), cached_tokens=0)
    assert known.held(chain(TEXT + ANSWER)) == whole


def test_where_the_engine_tells_what_it_drops_prompt_and_answer_go_with_its_blocks() -> None:
    known = cache()
    ids, answer = list(range(300)), list(range(1000, 1022))
    prompt = CachedPrompt(known, asked(), "m", ids, "")
    prompt.began(300, 0)
    prompt.output(EngineOutput(ANSWER, tuple(answer)))
    prompt.ended()
    # The last token is not computed before the next turn: 321 tokens are 20 blocks.
    blocks = token_chain.chain(token_chain.root("", ""), [*ids, *answer[:-1]], known.block_tokens)
    assert len(blocks) == 20
    known.dropped(blocks[-1:])
    assert not dict(known.sessions())
    before = known.held(chain(TEXT))
    known.dropped(blocks[:8])
    assert 0 < known.held(chain(TEXT)) + 1 < before
