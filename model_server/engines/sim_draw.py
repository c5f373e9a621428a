"""Which token comes at which place of an output: a hash of the prompt, the seed and the place, and of nothing else."""

import struct
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from model_server.engine import EngineRefused
from model_server.engines.sim_tokenizer import END_OF_TEXT, FIRST_LEAD, FIRST_PLAIN, FIRST_TAIL, SimTokenizer
from stoker.v1 import generation_pb2, inference_pb2

_MASK = (1 << 64) - 1
_LOW = (1 << 32) - 1


def mix(key: int, counter: int) -> int:
    """64 random bits for a key and a counter: SplitMix64 (Steele, Lea, Flood 2014) at position `counter`."""
    z = (key + counter * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def output_key(prompt_token_ids: Sequence[int], seed: int | None, adapter: str = "") -> int:
    """The key of every output of a prompt, a seed and an adapter."""
    digest = blake2b(struct.pack(f"<{len(prompt_token_ids)}i", *prompt_token_ids), digest_size=8)
    if seed is not None:
        digest.update(b"seed" + struct.pack("<q", seed))
    if adapter:
        digest.update(b"adapter" + adapter.encode())
    return int.from_bytes(digest.digest(), "little")


class TokenSource:
    """The tokens of one output, each computed from its place alone."""

    __slots__ = ("_allowed", "_banned", "_early", "_end", "_key", "_min_tokens", "_plain", "_tokenizer")

    def __init__(
        self,
        prompt_token_ids: Sequence[int],
        sampling: generation_pb2.Sampling,
        tokenizer: SimTokenizer,
        eos_probability: float,
        done_tokens: int = 0,
        adapter: str = "",
    ) -> None:
        """`done_tokens`: how many of min_tokens the prompt has. Raises EngineRefused where the rest forbids every token
        that is allowed.
        """
        self._key = output_key(prompt_token_ids, sampling.seed if sampling.HasField("seed") else None, adapter)
        self._tokenizer = tokenizer
        self._plain = tokenizer.vocabulary - FIRST_PLAIN
        self._end = int(eos_probability * (1 << 32))
        self._min_tokens = max(0, sampling.min_tokens - done_tokens)
        self._allowed = tuple(sorted(set(sampling.allowed_token_ids)))
        banned = frozenset(sampling.stop_token_ids)
        self._banned = banned if sampling.ignore_eos else banned | {END_OF_TEXT}
        self._early = self._early_choices()

    def _early_choices(self) -> tuple[int, ...]:
        """What to choose from before min_tokens; empty if that is simply all that does not end the output."""
        if self._min_tokens <= 0:
            return self._allowed
        choices: Iterable[int] = self._allowed
        if not self._allowed:
            if len(self._banned) * 2 < self._plain:
                return ()
            choices = range(FIRST_PLAIN, FIRST_PLAIN + self._plain)
        early = tuple(token_id for token_id in choices if token_id not in self._banned)
        if not early:
            raise EngineRefused("sampling.min_tokens", "every token that may occur would end the output")
        return early

    def token(self, place: int) -> int:
        """The token at this place, from 0. Two neighbours share one hash, so that halves of a character meet."""
        early = place < self._min_tokens
        choices = self._early if early else self._allowed
        if choices:
            return choices[mix(self._key, place) % len(choices)]
        bits = mix(self._key, place >> 1)
        token_id = self._unbound(place, bits)
        if early:
            # Less than half are banned: a draw or two.
            while token_id in self._banned:
                bits = mix(bits, place)
                token_id = FIRST_PLAIN + bits % self._plain
        return token_id

    def _unbound(self, place: int, bits: int) -> int:
        if place & 1:
            if not bits & 63:
                return FIRST_TAIL + (bits >> 32 & 63)
            half = bits >> 32
        else:
            if not bits & 63:
                return FIRST_LEAD + (bits >> 6) % (FIRST_TAIL - FIRST_LEAD)
            half = bits & _LOW
        if half < self._end:
            return END_OF_TEXT
        return FIRST_PLAIN + half % self._plain

    def logprobs(self, place: int, token_id: int, top: int) -> inference_pb2.TokenLogprobs:
        """The token's logprob and the `top` likeliest, of which it is the first. Halving: ln(1/2), ln(1/4), ..."""
        ids = [token_id]
        seen = {token_id}
        choices = self._allowed
        available = min(top, len(choices) if choices else self._plain)
        counter = 0
        while len(ids) < available:
            draw = mix(self._key ^ _MASK, place << 16 | counter)
            counter += 1
            other = choices[draw % len(choices)] if choices else FIRST_PLAIN + draw % self._plain
            if other not in seen:
                seen.add(other)
                ids.append(other)
        entries = [
            inference_pb2.Logprob(
                token_id=other, text=self._tokenizer.token_text(other), logprob=-0.6931471805599453 * rank, rank=rank
            )
            for rank, other in enumerate(ids, start=1)
        ]
        return inference_pb2.TokenLogprobs(token=entries[0], top=entries[:top])
