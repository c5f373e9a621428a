"""How fast a simulated server is: constants of a model of an engine's step, calibrated from a real one.

    step = base + per_stream x streams + per_context x tokens in their caches + prefill
    prefill of c tokens after o others = c / rate x (1 + (o + c / 2) / attention)

The defaults are what `bench.routing.calibration` fits to vLLM 0.26 with a Llama-8B shape on one H100
(bench/results/calibration_h100_llama8b.json): steps to 3 %, times to first tokens to 11 %, gaps among long prompts to
17 %. Not from there: what reading the caches takes, 128 KiB a token at 3.3 TB/s, since its streams were short; and the
size of the cache, which was held small there: 430,000 tokens are what the card has room for.
"""

from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True, slots=True)
class Speeds:
    """One kind of server. Times in ms, rates in tokens a ms, sizes in tokens."""

    step_base_ms: float = 6.2
    step_per_stream_ms: float = 0.0156
    step_per_context_token_ms: float = 4e-5
    prefill_tokens_per_ms: float = 50.9
    attention_tokens: float = 21_200.0
    kv_tokens: int = 430_000
    max_streams: int = 256
    max_batched_tokens: int = 1024
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


def as_json(speeds: Speeds) -> dict[str, float]:
    """For a results file."""
    return asdict(speeds)
