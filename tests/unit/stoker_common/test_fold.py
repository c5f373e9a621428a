"""Parts fold into the answer that they are, however they were cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.v1 import generation_pb2
from stoker.v1 import inference_pb2 as pb
from stoker_common.fold import Fold, folded

pytestmark = pytest.mark.unit

LOGPROBS = st.builds(
    pb.TokenLogprobs, token=st.builds(pb.Logprob, token_id=st.integers(0, 99), logprob=st.floats(-9, 0))
)
DELTA_FIELDS = {
    "index": st.integers(0, 3),
    "text": st.text(max_size=5),
    "token_ids": st.lists(st.integers(0, 99), max_size=4),
    "logprobs": st.lists(LOGPROBS, max_size=2),
    "finish_reason": st.sampled_from(pb.FinishReason.values()),
}
DELTAS = st.one_of(
    st.builds(pb.Delta, **DELTA_FIELDS),
    st.builds(pb.Delta, stop_string=st.text(max_size=3), **DELTA_FIELDS),
    st.builds(pb.Delta, stop_token_id=st.integers(0, 9), **DELTA_FIELDS),
)
PARTS = st.builds(
    pb.GenerateStreamResponse,
    started=st.one_of(
        st.none(),
        st.builds(pb.Started, server=st.text(max_size=3), prompt_token_ids=st.lists(st.integers(0, 9), max_size=3)),
    ),
    deltas=st.lists(DELTAS, max_size=4),
    progress=st.one_of(st.none(), st.builds(pb.Progress, fraction=st.floats(0, 1))),
    finished=st.one_of(
        st.none(), st.builds(pb.Finished, usage=st.builds(pb.Usage, completion_tokens=st.integers(0, 99)))
    ),
)


def fold(*parts: pb.GenerateStreamResponse) -> pb.GenerateResponse:
    folding = Fold()
    for part in parts:
        folding.add(part)
    return folding.response()


@settings(deadline=None)
@given(st.lists(PARTS, max_size=6))
def test_concatenated_parts_fold_as_the_parts_do(parts: list[pb.GenerateStreamResponse]) -> None:
    joined = pb.GenerateStreamResponse.FromString(b"".join(part.SerializeToString() for part in parts))
    assert fold(joined) == fold(*parts)


@settings(deadline=None)
@given(st.lists(PARTS, max_size=6), st.integers(0, 3))
def test_an_answer_that_came_whole_is_what_its_parts_fold_to(parts: list[pb.GenerateStreamResponse], n: int) -> None:
    for delta in (delta for part in parts for delta in part.deltas):
        delta.index = min(delta.index, max(0, n - 1))
        if not delta.finish_reason:
            delta.ClearField("stop_string")
            delta.ClearField("stop_token_id")
    asked = generation_pb2.Generation(sampling=generation_pb2.Sampling(n=n) if n else None)
    assert folded(b"".join(part.SerializeToString() for part in parts), asked) == fold(*parts)


def test_outputs_come_by_index_with_all_that_their_deltas_said() -> None:
    first, second = pb.TokenLogprobs(token=pb.Logprob(token_id=1)), pb.TokenLogprobs(token=pb.Logprob(token_id=2))
    answer = fold(
        pb.GenerateStreamResponse(started=pb.Started(server="a", prompt_tokens=3)),
        pb.GenerateStreamResponse(deltas=[pb.Delta(index=1, text="no", token_ids=[7])]),
        pb.GenerateStreamResponse(
            deltas=[
                pb.Delta(index=0, text="Par", token_ids=[1], logprobs=[first]),
                pb.Delta(index=0, text="is", token_ids=[2], logprobs=[second]),
            ]
        ),
        pb.GenerateStreamResponse(
            deltas=[
                pb.Delta(index=0, text=".", finish_reason=pb.FINISH_REASON_STOP, stop_string="\n"),
                pb.Delta(index=1, finish_reason=pb.FINISH_REASON_LENGTH),
            ],
            finished=pb.Finished(usage=pb.Usage(completion_tokens=3)),
        ),
    )
    assert answer == pb.GenerateResponse(
        started=pb.Started(server="a", prompt_tokens=3),
        outputs=[
            pb.Output(
                index=0,
                text="Paris.",
                token_ids=[1, 2],
                logprobs=[first, second],
                finish_reason=pb.FINISH_REASON_STOP,
                stop_string="\n",
            ),
            pb.Output(index=1, text="no", token_ids=[7], finish_reason=pb.FINISH_REASON_LENGTH),
        ],
        finished=pb.Finished(usage=pb.Usage(completion_tokens=3)),
    )


def test_the_answer_so_far_can_be_read_and_added_to() -> None:
    folding = Fold()
    folding.add(pb.GenerateStreamResponse(deltas=[pb.Delta(text="a")]))
    assert folding.response().outputs[0].text == "a"
    assert not folding.response().HasField("finished")
    folding.add(pb.GenerateStreamResponse(deltas=[pb.Delta(text="b")]))
    assert folding.response().outputs[0].text == "ab"
