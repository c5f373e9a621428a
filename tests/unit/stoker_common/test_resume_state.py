import pytest

from stoker.v1 import generation_pb2 as pb
from stoker_common.refusal import Code, Refusal
from stoker_common.validate import check_generation


def request(outputs: list[pb.ResumeOutput] | None = None, **changes: object) -> pb.Generation:
    """A continuation, right but for what is changed."""
    state = {"model": "m", "prompt_token_ids": [1, 2], "outputs": outputs or [], **changes}
    return pb.Generation(
        model="m",
        sampling=pb.Sampling(max_tokens=3, n=2),
        resume=pb.ResumeState(**state),  # type: ignore[arg-type]
    )


def output(index: int = 0, ids: tuple[int, ...] = (5,), text_bytes: int = 4) -> pb.ResumeOutput:
    return pb.ResumeOutput(index=index, token_ids=ids, text_bytes=text_bytes)


def test_a_continuation_needs_no_prompt() -> None:
    check_generation(request([output(0), output(1, (5, 6, 7))]))


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (request(model="other"), "generation.resume.model"),
        (request(prompt_token_ids=[]), "generation.resume.prompt_token_ids"),
        (request(mode=9), "generation.resume.mode"),
        (request([output(2)]), "generation.resume.outputs[0].index"),
        (request([output(-1)]), "generation.resume.outputs[0].index"),
        (request([output(1), output(1)]), "generation.resume.outputs[1].index"),
        (request([output(text_bytes=-1)]), "generation.resume.outputs[0].text_bytes"),
        (request([output(ids=(1, -1))]), "generation.resume.outputs[0].token_ids"),
        (request([output(ids=(1, 2, 3, 4))]), "generation.resume.outputs[0].token_ids"),
    ],
)
def test_what_does_not_fit_is_named(asked: pb.Generation, field: str) -> None:
    with pytest.raises(Refusal) as caught:
        check_generation(asked)
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARGUMENT, field)
