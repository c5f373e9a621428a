"""REPLAY on vLLM's V1 model runner: a logits processor that forces the emitted ids, then lets go. Loaded by vLLM."""

from collections.abc import Callable
from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from model_server.engines.vllm_resume_core import REPLAY_KEY, emitted_ids


class ForceEmitted(AdapterLogitsProcessor):  # type: ignore[misc]  # vLLM is not followed by mypy: its classes are Any.
    """Leaves one finite logit where an id is to be forced. The draws still happen, so a seeded generator moves on."""

    def is_argmax_invariant(self) -> bool:
        """It changes the likeliest token: vLLM must not skip it for greedy requests."""
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Callable[[list[int], Any], Any] | None:
        """A request's own processor; None if it has nothing to force."""
        forced = emitted_ids(params, REPLAY_KEY)
        if not forced:
            return None

        def force(output_token_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            place = len(output_token_ids)
            if place < len(forced):
                token_id = forced[place]
                # Other processors may have ruled it out: what was emitted stands.
                kept = logits[token_id].nan_to_num(neginf=0.0)
                logits.fill_(float("-inf"))
                logits[token_id] = kept
            return logits

        return force
