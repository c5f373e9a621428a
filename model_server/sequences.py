"""A request for `n` outputs as `n` requests for one: what the engine gets."""

from model_server.engine import EngineRequest, ResumeMode
from stoker.v1 import generation_pb2


def sequences(
    generation: generation_pb2.Generation,
    engine_id: str,
    prompt_token_ids: tuple[int, ...],
    max_tokens: int,
    trace_headers: dict[str, str],
    mode: ResumeMode = ResumeMode.PREFILL,
    adapter: str = "",
) -> dict[int, EngineRequest]:
    """An engine request for each output that has not finished elsewhere, by index.

    Output i draws with seed + i, as in vLLM, so that outputs differ. `mode` is how outputs that began elsewhere go on.
    `adapter`: the LoRA adapter that all of them run under.
    """
    begun = {output.index: output for output in generation.resume.outputs}
    n = generation.sampling.n if generation.sampling.HasField("n") else 1
    return {
        index: EngineRequest(
            request_id=f"{engine_id}.{index}",
            prompt_token_ids=prompt_token_ids,
            sampling=_sampling(generation.sampling, index),
            max_tokens=max_tokens,
            structured_output=generation.structured_output if generation.HasField("structured_output") else None,
            cache_salt=generation.cache_salt,
            priority=generation.priority,
            trace_headers=trace_headers,
            emitted_token_ids=tuple(begun[index].token_ids) if index in begun else (),
            resume_mode=mode,
            adapter=adapter,
        )
        for index in range(n)
        if index not in begun or not begun[index].finished
    }


def _sampling(sampling: generation_pb2.Sampling, index: int) -> generation_pb2.Sampling:
    if not sampling.HasField("n") or sampling.n == 1:
        return sampling
    one = generation_pb2.Sampling()
    one.CopyFrom(sampling)
    one.ClearField("n")
    if one.HasField("seed"):
        # Seeds are 64 bits wide and wrap around.
        one.seed = (one.seed + index + (1 << 63)) % (1 << 64) - (1 << 63)
    return one
