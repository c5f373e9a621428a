"""How fast a simulated server is: constants of a model of an engine's step, calibrated from a real one.

    step = base + per_stream x streams + per_context x tokens in their caches + prefill
    prefill of c tokens after o others = c / rate x (1 + (o + c / 2) / attention)

The defaults fit what vLLM 0.26 did with a Llama-8B shape and 512-token prompts on one H100 (docs/routing.md):

- 155 tok/s alone: 6.4 ms a step. At 32 streams 2,958 tok/s: of 1.38 s for 128 tokens each, 0.44 s are prompts, the rest
  7.4 ms a step. At 128, 10 ms. What grows is the reading of the cache: 128 KiB a token at 3.3 TB/s is 0.04 us.
- 32, 128 and 256 prompts at once gave half of them their first token after 320, 872 and 2,735 ms: 37 tokens a ms.
- Attention over o tokens costs 4 x 4096 x 32 x o operations a token beside 16 G for the weights: as much at 32 k.
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Speeds:
    """One kind of server. Times in ms, rates in tokens a ms, sizes in tokens."""

    step_base_ms: float = 6.4
    step_per_stream_ms: float = 0.01
    step_per_context_token_ms: float = 4e-5
    prefill_tokens_per_ms: float = 37.0
    attention_tokens: float = 32_000.0
    kv_tokens: int = 430_000
    max_streams: int = 256
    max_batched_tokens: int = 8192
    # Of a step's time, its standard deviation; and how often it takes much longer, and how much.
    noise: float = 0.05
    hiccup_share: float = 0.002
    hiccup_ms: float = 50.0
    # Until a model that sleeps in host memory serves.
    wake_ms: float = 550.0

    def scaled(self, factor: float) -> "Speeds":
        """A server `factor` times as fast, with as much more memory."""
        return replace(
            self,
            step_base_ms=self.step_base_ms / factor,
            step_per_stream_ms=self.step_per_stream_ms / factor,
            step_per_context_token_ms=self.step_per_context_token_ms / factor,
            prefill_tokens_per_ms=self.prefill_tokens_per_ms * factor,
            kv_tokens=int(self.kv_tokens * factor),
        )

    def prefill_ms(self, offset: int, tokens: int) -> float:
        """What `tokens` of a prompt take after `offset` others of it."""
        return tokens / self.prefill_tokens_per_ms * (1.0 + (offset + tokens / 2) / self.attention_tokens)

    def decode_ms(self, streams: int, context_tokens: int) -> float:
        """What a step takes beside prompts."""
        return self.step_base_ms + self.step_per_stream_ms * streams + self.step_per_context_token_ms * context_tokens


def read(path: Path) -> Speeds:
    """Speeds from a calibration file: a JSON object whose "speeds" has some of the fields. Raises ValueError."""
    given = json.loads(path.read_text()).get("speeds")
    known = {field.name for field in fields(Speeds)}
    if not isinstance(given, dict) or not given.keys() <= known:
        raise ValueError(f'{path} has no object "speeds", or fields in it that are none of {sorted(known)}')
    return Speeds(**given)


def as_json(speeds: Speeds) -> dict[str, float]:
    """For a results file."""
    return asdict(speeds)
