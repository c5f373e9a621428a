"""The conversations that are held: how long each turn is and what it says, the same for every policy but for the words.

Lengths depend on the seed, the round and the session's number alone, so that every policy gets the same work. Words
depend on the policy as well: what one policy left in the servers' caches is of no use to the next.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from stoker_client.options import Turn


@dataclass(frozen=True)
class Shape:
    """Lengths in tokens; each is drawn evenly from within `spread` of it, either way."""

    turns: int
    first_tokens: int
    turn_tokens: int
    answer_tokens: int
    spread: float = 0.5

    def drawn(self, mean: int, rng: random.Random) -> int:
        """A length about `mean`."""
        return max(1, round(mean * rng.uniform(1 - self.spread, 1 + self.spread)))


@dataclass(frozen=True)
class Say:
    """One turn: what is said, and how many tokens the answer has."""

    ids: tuple[int, ...]
    answer_tokens: int


class Words:
    """A tokenizer's whole words, so that a text has as many tokens as it has words, nearly."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        # A word that begins with a space, in the byte-level alphabet that all of these tokenizers use.
        whole = (at for token, at in vocabulary.items() if token[:1] == "Ġ" and token[1:].isascii() and len(token) > 3)
        self.ids: Sequence[int] = sorted(whole)
        if len(self.ids) < 100:
            raise ValueError("the tokenizer has hardly a whole word: is it a byte-level one?")

    @classmethod
    def of(cls, model: Path) -> "Words":
        """Those of the model in the folder."""
        return cls(Tokenizer.from_file(str(model / "tokenizer.json")))

    def text(self, ids: Sequence[int]) -> str:
        """The words of these ids."""
        return str(self._tokenizer.decode(list(ids)))


def script(shape: Shape, words: Sequence[int], seed: int, at: str, number: int, policy: str) -> list[Say]:
    """Session `number` of the round or phase `at`, turn by turn."""
    lengths, said = random.Random(f"{seed} {at} {number}"), random.Random(f"{seed} {at} {number} {policy}")
    turns = []
    for place in range(shape.turns):
        tokens = shape.drawn(shape.turn_tokens if place else shape.first_tokens, lengths)
        turns.append(Say(tuple(said.choices(words, k=tokens)), shape.drawn(shape.answer_tokens, lengths)))
    return turns


class Conversation:
    """What was said so far, as the next request has it: ids, or a chat."""

    def __init__(self, words: Words, *, chat: bool) -> None:
        self._words = words
        self._chat = chat
        self._ids: list[int] = []
        self._turns: list[Turn] = []

    def say(self, ids: Sequence[int]) -> None:
        """Our turn."""
        self._ids += ids
        if self._chat:
            self._turns.append(Turn(role="user", content=self._words.text(ids)))

    def heard(self, ids: Sequence[int], text: str) -> None:
        """The answer."""
        self._ids += ids
        if self._chat:
            self._turns.append(Turn(role="assistant", content=text))

    @property
    def token_ids(self) -> list[int] | None:
        """The prompt, if it is one of ids."""
        return None if self._chat else self._ids

    @property
    def messages(self) -> list[Turn] | None:
        """The prompt, if it is a chat."""
        return self._turns if self._chat else None
