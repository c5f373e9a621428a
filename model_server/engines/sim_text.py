"""An output's text as its tokens come: whole characters only, and no text that may become a stop string."""

from collections.abc import Sequence

from model_server.engines.sim_tokenizer import (
    FIRST_LEAD,
    FIRST_PLAIN,
    FIRST_TAIL,
    FIRST_WORD,
    REPLACEMENT,
    SimTokenizer,
    paired,
    word,
)


class OutputText:
    """Turns the tokens of one output into text that can be sent."""

    __slots__ = ("_held", "_include_stop", "_lead", "_skip_specials", "_stops", "_tokenizer", "stopped_by")

    def __init__(
        self, tokenizer: SimTokenizer, stops: Sequence[str], *, include_stop: bool = False, skip_specials: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._include_stop = include_stop
        self._skip_specials = skip_specials
        self._lead = 0
        self._held = ""
        self.stopped_by: str | None = None

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """The text that can be sent now. Sets `stopped_by` when a stop string ends the output; then nothing follows."""
        if token_id >= FIRST_WORD and not self._lead:
            text = word(token_id - FIRST_WORD)
        else:
            text = self._decode(token_id)
        if not self._stops:
            return text
        return self._after_stops(text, may_stop=may_stop)

    def flush(self) -> str:
        """What was held back in case of a stop string, when the output ends otherwise. Half a character is dropped."""
        held, self._held = self._held, ""
        return held

    def _decode(self, token_id: int) -> str:
        lead = self._lead
        if token_id >= FIRST_PLAIN:
            text = self._tokenizer.token_text(token_id)
            if lead:
                self._lead = 0
                return REPLACEMENT + text
            return text
        if token_id >= FIRST_TAIL:
            self._lead = 0
            return paired(lead, token_id) if lead else REPLACEMENT
        if token_id >= FIRST_LEAD:
            self._lead = token_id
            return REPLACEMENT if lead else ""
        if self._skip_specials:
            return ""
        self._lead = 0
        return (REPLACEMENT if lead else "") + self._tokenizer.token_text(token_id)

    def _after_stops(self, text: str, *, may_stop: bool) -> str:
        if not text:
            return ""
        held = self._held
        whole = held + text
        if may_stop:
            found = self._find(whole, len(held))
            if found is not None:
                stop, start = found
                self.stopped_by = stop
                self._held = ""
                return whole[: start + len(stop)] if self._include_stop else whole[:start]
        kept = max(_overlap(whole, stop) for stop in self._stops)
        self._held = whole[len(whole) - kept :]
        return whole[: len(whole) - kept]

    def _find(self, whole: str, known: int) -> tuple[str, int] | None:
        """The stop string that ends first in the text after `known`, and where it begins."""
        best: tuple[str, int] | None = None
        best_end = 0
        for stop in self._stops:
            start = whole.find(stop, max(0, known - len(stop) + 1))
            if start >= 0 and (best is None or start + len(stop) < best_end):
                best, best_end = (stop, start), start + len(stop)
        return best


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of the text that the stop string begins with, short of all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
