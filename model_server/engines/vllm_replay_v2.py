"""REPLAY on vLLM's V2 model runner, from the release on that has logits processors there. Loaded by vLLM.

The same as `vllm_replay_v1`, by place in the sequence: V2 keys its noise by (seed, position), so draws need no care.
"""

from typing import Any

import torch
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

from model_server.engines.vllm_resume_core import REPLAY_KEY, emitted_ids


class ForceEmitted(LogitsProcessor):  # type: ignore[misc]  # vLLM is not followed by mypy: its classes are Any.
    """Leaves one finite logit where an id is to be forced."""

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        super().__init__(vllm_config, req_states)
        self._prompt_tokens = req_states.prompt_len
        # By the runner's slot for the request.
        self._forced: dict[int, list[int]] = {}

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Take a slot over; whether there is something to force."""
        forced = emitted_ids(sampling_params, REPLAY_KEY)
        if forced:
            self._forced[req_idx] = forced
        else:
            self._forced.pop(req_idx, None)
        return bool(forced)

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Force where it is due. Without speculative decoding a request has one row."""
        if not self._forced:
            return logits
        for row, slot in enumerate(ctx.idx_mapping_np.tolist()):
            forced = self._forced.get(slot)
            if forced is None:
                continue
            place = int(ctx.seq_lens_upper_bound_np[row]) - int(self._prompt_tokens.np[slot])
            if 0 <= place < len(forced):
                token_id = forced[place]
                kept = logits[row, token_id].nan_to_num(neginf=0.0)
                logits[row].fill_(float("-inf"))
                logits[row, token_id] = kept
        return logits
