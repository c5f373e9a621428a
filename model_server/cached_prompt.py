"""One request's part in what is known of the engine's cache: its prompt, once computed, and its answer, at its end."""

from collections.abc import Sequence

from model_server import token_chain
from model_server.engine import EngineOutput
from model_server.prefixes import CachedPrefixes
from stoker.v1.generation_pb2 import Generation
from stoker_common import prefix


class CachedPrompt:
    """Told of what happens to the request. Cheap for each output: what is hashed is hashed at the end."""

    def __init__(
        self, cache: CachedPrefixes, generation: Generation, model: str, ids: Sequence[int] = (), adapter: str = ""
    ) -> None:
        """`ids`: the prompt's, where the engine tells what leaves its cache, else none. They are hashed then."""
        self._cache = cache
        self._prompt_ids = ids
        self._root = token_chain.root(adapter, generation.cache_salt)
        self._generation = generation
        sampling = generation.sampling
        self._reads_cache = not sampling.skip_reading_prefix_cache and not sampling.HasField("prompt_logprobs")
        self._prefix = prefix.of(generation, model)
        self._session = prefix.session_hash(model, generation.cache_salt, generation.session.id)
        self._believed = cache.held(self._prefix)
        self._prompt_tokens = 0
        # Of one output alone: which of several the next turn goes on from, nobody knows.
        self._alone = not sampling.HasField("n") or sampling.n == 1
        self._texts: list[str] = []
        self._ids: list[int] = []

    def began(self, prompt_tokens: int, cached_tokens: int) -> None:
        """The prompt is computed; `cached_tokens` of it were there."""
        self._prompt_tokens = prompt_tokens
        if self._reads_cache:
            self._cache.correct(self._prefix, prompt_tokens, self._believed, cached_tokens, self._session)
        self._cache.add(self._prefix, prompt_tokens, self._session, self._blocks())

    def output(self, output: EngineOutput) -> None:
        """More of the answer. Runs once a token."""
        if self._alone:
            self._texts.append(output.text)
            self._ids += output.token_ids

    def ended(self) -> None:
        """The answer is whole."""
        if not self._alone or not self._prompt_tokens:
            return
        whole = prefix.answered(self._prefix, self._generation, "".join(self._texts), self._ids)
        self._cache.add(whole, self._prompt_tokens + len(self._ids), self._session, self._blocks())

    def _blocks(self) -> list[int]:
        """The engine's whole blocks of all tokens so far but the last answered one, which is not computed yet."""
        if not self._prompt_ids:
            return []
        return token_chain.chain(self._root, [*self._prompt_ids, *self._ids[:-1]], self._cache.block_tokens)
