"""What real vLLM says it dropped from its prefix cache is what it does not find there any more."""

import os
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial

import pytest
import pytest_asyncio

from model_server import token_chain
from model_server.engines.vllm_settings import VllmSettings, environment
from tests.e2e.test_vllm_engine import GREEDY, MODEL, Runner, ids_of
from tests.fakes.until import until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.xdist_group("vllm"),
]
BLOCK = 32


@pytest.fixture(scope="module")
def settings() -> Iterator[VllmSettings]:
    # A cache of some 1,400 tokens, of which a prompt takes 320.
    made = VllmSettings(
        model=str(MODEL), max_model_len=1024, block_size=BLOCK, kv_cache_memory_bytes=32 << 20, kv_events=True
    )
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment(made, os.environ).items():
            patch.setenv(key, value)
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def run(settings: VllmSettings) -> AsyncIterator[Runner]:
    from model_server.engines.vllm_engine import VllmEngine

    engine = VllmEngine(settings)
    await engine.start()
    try:
        yield Runner(engine)
    finally:
        await engine.stop()


def hear(run: Runner, gone: set[int]) -> set[int]:
    """All that has left by now."""
    gone.update(run.engine.dropped())
    return gone


async def test_what_it_drops_is_what_it_does_not_find_any_more(run: Runner) -> None:
    assert run.engine.info.tells_dropped
    rng = random.Random(1)
    prompts = [tuple(rng.choices(range(1000, 40000), k=320)) for _ in range(6)]
    gone: set[int] = set()
    chains = [token_chain.chain(token_chain.root("", ""), prompt, BLOCK) for prompt in prompts]
    for prompt in prompts:
        await run.outputs(GREEDY, prompt, max_tokens=4)
    # They come a moment after the step that they are of.
    await until(lambda: len(hear(run, gone)) >= len(chains[0]))
    assert run.engine.info.kv_tokens < sum(map(len, prompts))
    # The latest is whole; of the first nothing is left, or its beginning.
    assert not gone & set(chains[-1])

    def left_tokens(prompt: tuple[int, ...], chain: Sequence[int]) -> int:
        hear(run, gone)
        left = next((place for place, key in enumerate(chain) if key in gone), len(chain))
        # All but the block that holds the last token, which is computed anyway.
        return min(left, (len(prompt) - 1) // BLOCK) * BLOCK

    for prompt, chain in reversed(list(zip(prompts, chains, strict=True))):
        left = left_tokens(prompt, chain)
        (first, *_) = await run.outputs(GREEDY, prompt, max_tokens=1)
        found = first.cached_tokens
        assert found <= left
        # What was not found is told by now, or in a moment: what left with the step before was on its way.
        told = partial(left_tokens, prompt, chain)
        await until(lambda told=told, found=found: told() == found)  # type: ignore[misc]
        if found < (len(prompt) - 1) // BLOCK * BLOCK:
            break  # asking for it again takes the places of others


async def test_a_salt_has_chains_of_its_own(run: Runner) -> None:
    prompt = tuple(range(2000, 2000 + 2 * BLOCK))
    await run.outputs(GREEDY, prompt, max_tokens=1, cache_salt="tenant")
    mine = token_chain.chain(token_chain.root("", "tenant"), prompt, BLOCK)
    gone: set[int] = set()
    rng = random.Random(2)
    for _ in range(8):
        ids = await run.outputs(GREEDY, tuple(rng.choices(range(1000, 40000), k=300)), max_tokens=2)
        assert len(ids_of(ids)) == 2
    await until(lambda: set(mine) <= hear(run, gone))
