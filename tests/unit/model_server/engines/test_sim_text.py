"""The text of the simulator's outputs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_server.engines.sim_text import OutputText
from model_server.engines.sim_tokenizer import (
    END_OF_TEXT,
    FIRST_LEAD,
    FIRST_PLAIN,
    FIRST_TAIL,
    FIRST_WORD,
    REPLACEMENT,
    SimTokenizer,
)

pytestmark = pytest.mark.unit

TOKENIZER = SimTokenizer(32_000)
BA, BE = FIRST_WORD, FIRST_WORD + 1  # " ba", " be"
DOT = FIRST_PLAIN


def _sent(text: OutputText, *token_ids: int) -> list[str]:
    return [text.push(token_id) for token_id in token_ids]


def test_half_a_character_waits_for_the_other_half() -> None:
    text = OutputText(TOKENIZER, ())
    assert _sent(text, BA, FIRST_LEAD, FIRST_TAIL, BE) == [" ba", "", "\u6000", " be"]
    assert _sent(text, FIRST_TAIL - 1, FIRST_PLAIN - 1) == ["", "\U0001f63f"]


def test_half_a_character_alone_is_replaced_and_at_the_end_dropped() -> None:
    text = OutputText(TOKENIZER, ())
    assert _sent(text, FIRST_LEAD, BA) == ["", REPLACEMENT + " ba"]
    assert _sent(text, FIRST_TAIL) == [REPLACEMENT]
    assert _sent(text, FIRST_LEAD, FIRST_LEAD) == ["", REPLACEMENT]
    assert text.flush() == ""


def test_special_tokens_show_when_asked_for() -> None:
    assert _sent(OutputText(TOKENIZER, ()), BA, END_OF_TEXT, BE) == [" ba", "", " be"]
    shown = OutputText(TOKENIZER, (), skip_specials=False)
    assert _sent(shown, FIRST_LEAD, END_OF_TEXT, BE) == ["", REPLACEMENT + "<|endoftext|>", " be"]


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    text = OutputText(TOKENIZER, ["a be."])
    assert _sent(text, BE, BA, BA, BE, BE) == [" be", " b", "a b", "", "a be be"]
    assert text.stopped_by is None
    assert _sent(text, BA, BE) == [" b", ""]
    assert text.flush() == "a be"


def test_a_stop_string_over_three_tokens_ends_the_text_before_it() -> None:
    text = OutputText(TOKENIZER, ["nowhere", "a be."])
    assert _sent(text, BA, BE, DOT) == [" b", "", ""]
    assert text.stopped_by == "a be."
    assert text.flush() == ""


def test_a_stop_string_stays_when_asked_for_and_what_follows_it_goes() -> None:
    text = OutputText(TOKENIZER, ["a b"], include_stop=True)
    assert "".join(_sent(text, BA, BE)) == " ba b"


def test_of_two_stop_strings_the_one_that_ends_first_counts() -> None:
    text = OutputText(TOKENIZER, ["ba be.", "be"])
    assert "".join(_sent(text, BA, BE)) == " ba "
    assert text.stopped_by == "be"


def test_before_min_tokens_stop_strings_pass() -> None:
    text = OutputText(TOKENIZER, ["ba"])
    assert text.push(BA, may_stop=False) == " ba"
    assert text.push(BE) == " be"
    assert text.push(BA) == " "
    assert text.stopped_by == "ba"


@given(
    st.lists(st.sampled_from([BA, BE, DOT, FIRST_LEAD, FIRST_TAIL]), max_size=30),
    st.lists(st.text(alphabet=" abe.\u6000", min_size=1, max_size=6), min_size=1, max_size=4),
)
def test_streaming_with_stops_equals_cutting_the_whole(token_ids: list[int], stops: list[str]) -> None:
    plain = OutputText(TOKENIZER, ())
    pieces = _sent(plain, *token_ids)
    expected = "".join(pieces)
    stopped_by = None
    # The least text, by whole pieces, that holds a stop string; in it the one that ends first.
    for count in range(1, len(pieces) + 1):
        whole = "".join(pieces[:count])
        ends = [(whole.index(stop) + len(stop), place) for place, stop in enumerate(stops) if stop in whole]
        if ends:
            end, place = min(ends)
            stopped_by = stops[place]
            expected = whole[: end - len(stopped_by)]
            break

    text = OutputText(TOKENIZER, stops)
    streamed = ""
    for token_id in token_ids:
        streamed += text.push(token_id)
        if text.stopped_by is not None:
            break
    assert text.stopped_by == stopped_by
    assert streamed + text.flush() == expected
