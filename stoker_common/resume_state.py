"""What is wrong with a resume state that no server could go on from."""

from stoker.v1 import endpoint_pb2, generation_pb2
from stoker.v1.generation_pb2 import Generation
from stoker_common.adapters import asked_model
from stoker_common.refusal import invalid

_PATH = "generation.resume"


def check_resume(generation: Generation) -> None:
    """Refuse a resume state that does not fit its request. The prompt is the state's: no other is needed."""
    state = generation.resume
    asked = asked_model(generation)
    if state.model != asked:
        text = f"is {state.model!r} and the model asked for {asked!r}; both must be what `Started` named"
        raise invalid(f"{_PATH}.model", text)
    if not state.prompt_token_ids:
        raise invalid(f"{_PATH}.prompt_token_ids", "is empty; give the ids that `Started` gave")
    if state.mode not in endpoint_pb2.ResumeMode.DESCRIPTOR.values_by_number:
        raise invalid(f"{_PATH}.mode", f"{state.mode} is not a mode of resuming")
    n = generation.sampling.n if generation.sampling.HasField("n") else 1
    seen: set[int] = set()
    for at, output in enumerate(state.outputs):
        _check_output(f"{_PATH}.outputs[{at}]", output, n, generation.sampling)
        if output.index in seen:
            raise invalid(f"{_PATH}.outputs[{at}].index", f"{output.index} occurs twice; give each output once")
        seen.add(output.index)


def _check_output(path: str, output: generation_pb2.ResumeOutput, n: int, sampling: generation_pb2.Sampling) -> None:
    if not 0 <= output.index < n:
        raise invalid(f"{path}.index", f"is {output.index}; the request's outputs go from 0 to {n - 1}")
    if output.text_bytes < 0:
        raise invalid(f"{path}.text_bytes", f"is {output.text_bytes}; give how much text was received, 0 or more")
    if any(token_id < 0 for token_id in output.token_ids):
        raise invalid(f"{path}.token_ids", "has an id below 0; give the ids that were received")
    if sampling.HasField("max_tokens") and len(output.token_ids) > sampling.max_tokens:
        text = f"has {len(output.token_ids)} ids, and max_tokens is {sampling.max_tokens}; give what was received"
        raise invalid(f"{path}.token_ids", text)
