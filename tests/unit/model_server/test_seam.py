import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_server.engine import EngineOutput
from model_server.seam import Seam
from stoker.v1 import inference_pb2

LENGTH = inference_pb2.FINISH_REASON_LENGTH


def output(text: str, *ids: int, end: bool = False) -> EngineOutput:
    reason = LENGTH if end else inference_pb2.FINISH_REASON_UNSPECIFIED
    logprobs = tuple(inference_pb2.TokenLogprobs(token=inference_pb2.Logprob(token_id=each)) for each in ids)
    return EngineOutput(text, ids, logprobs=logprobs, finish_reason=reason)


def test_what_the_client_has_is_cut_off_within_an_output_and_over_several() -> None:
    seam = Seam(tokens=3, text_bytes=5)
    assert seam.cut(output("abc", 1, 2)) is None
    cut = seam.cut(output("defg", 3, 4))
    assert cut is not None
    assert (cut.text, cut.token_ids) == ("fg", (4,))
    assert [each.token.token_id for each in cut.logprobs] == [4]
    after = output("h", 5)
    assert seam.cut(after) is after


def test_text_that_was_held_back_comes_though_its_ids_were_received() -> None:
    seam = Seam(tokens=2, text_bytes=1)
    cut = seam.cut(output("a火", 1, 2))
    assert cut is not None
    assert (cut.text, cut.token_ids) == ("火", ())


def test_an_end_is_told_though_nothing_else_is_new() -> None:
    cut = Seam(tokens=1, text_bytes=1).cut(output("a", 1, end=True))
    assert cut is not None
    assert (cut.text, cut.token_ids, cut.finish_reason) == ("", (), LENGTH)


@given(
    st.lists(st.tuples(st.text("ab é火🙂", max_size=4), st.integers(0, 3)), min_size=1, max_size=8),
    st.data(),
)
def test_nothing_is_lost_or_repeated_wherever_it_is_cut(steps: list[tuple[str, int]], data: st.DataObject) -> None:
    outputs, number = [], 0
    for text, count in steps:
        outputs.append(output(text, *range(number, number + count)))
        number += count
    whole = "".join(each.text for each in outputs)
    tokens = data.draw(st.integers(0, number))
    characters = data.draw(st.integers(0, len(whole)))
    seam = Seam(tokens, len(whole[:characters].encode()))
    rest = [cut for each in outputs if (cut := seam.cut(each)) is not None]
    assert "".join(each.text for each in rest) == whole[characters:]
    assert [each for cut in rest for each in cut.token_ids] == list(range(tokens, number))
    for cut in rest:
        assert [each.token.token_id for each in cut.logprobs] == list(cut.token_ids)


@pytest.mark.parametrize("text", ["", "abc"])
def test_without_a_seam_everything_passes(text: str) -> None:
    each = output(text, 1)
    assert Seam(0, 0).cut(each) is each
