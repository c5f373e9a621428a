"""The simulator's tokenizer: text to token ids and back to readable made-up words, without a file.

The vocabulary, in order: special tokens; leads and tails, each half of a character that needs both; punctuation; words
made of syllables, each with a space before it. What the simulator writes, it reads back as the same ids, so that a
conversation's next turn finds the last one in the prefix cache. Other text becomes ids by a hash.
"""

import re
from zlib import crc32

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TEXT, TURN_START, TURN_END = range(3)

# A lead and any tail make one character of UTF-8: U+6000 to U+6FFF (E6 80..BF, then one byte), or an emoji of
# U+1F600 to U+1F63F (F0 9F 98, then one byte). All of these are assigned.
FIRST_LEAD = len(SPECIALS)
EMOJI_LEAD = FIRST_LEAD + 64
FIRST_TAIL = EMOJI_LEAD + 1
FIRST_PLAIN = FIRST_TAIL + 64

_PUNCTUATION = ".,!?:;\n()-\"'"
_PUNCTUATION_IDS = {character: FIRST_PLAIN + place for place, character in enumerate(_PUNCTUATION)}
FIRST_WORD = FIRST_PLAIN + len(_PUNCTUATION)

_SYLLABLES = tuple(consonant + vowel for consonant in "bdfghjklmnprstvz" for vowel in "aeiou")
_SYLLABLE_RANKS = {syllable: rank for rank, syllable in enumerate(_SYLLABLES)}
_BASE = len(_SYLLABLES)
# How many words have fewer than 2, 3, ... syllables.
_SHORTER = (_BASE, _BASE + _BASE**2, _BASE + _BASE**2 + _BASE**3)

SMALLEST_VOCABULARY = FIRST_WORD + 1

_PAIRED = "\u6000-\u6fff\U0001f600-\U0001f63f"
# A run of spaces, in characters.
LONGEST_TOKEN = 16
# A word with the space before it, a character of two tokens, or anything else one at a time but runs of spaces.
_PIECES = re.compile(
    rf"(?P<word> ?[^\W{_PAIRED}]+)|(?P<pair>[{_PAIRED}])|(?P<other> {{2,{LONGEST_TOKEN}}}(?= )|.)", re.DOTALL
)
_LETTERS_PER_TOKEN = 5

REPLACEMENT = "\ufffd"


def word(rank: int) -> str:
    """The word with this rank, from 0, with the space before it. Its first syllable is the one that differs most."""
    if rank < _BASE:
        return " " + _SYLLABLES[rank]
    if rank < _SHORTER[1]:
        rank -= _BASE
        return f" {_SYLLABLES[rank % _BASE]}{_SYLLABLES[rank // _BASE]}"
    if rank < _SHORTER[2]:
        rank -= _SHORTER[1]
        return f" {_SYLLABLES[rank % _BASE]}{_SYLLABLES[rank // _BASE % _BASE]}{_SYLLABLES[rank // _BASE**2]}"
    rank -= _SHORTER[2]
    letters = " "
    for _ in range(4):
        rank, digit = divmod(rank, _BASE)
        letters += _SYLLABLES[digit]
    return letters


def _rank(letters: str) -> int | None:
    """The rank of a word of one to four syllables, None if it is not one of ours."""
    syllables = len(letters) // 2
    if len(letters) % 2 or not 1 <= syllables <= 4:
        return None
    rank = 0
    for start in range(len(letters) - 2, -1, -2):
        digit = _SYLLABLE_RANKS.get(letters[start : start + 2])
        if digit is None:
            return None
        rank = rank * _BASE + digit
    return rank + (_SHORTER[syllables - 2] if syllables > 1 else 0)


class SimTokenizer:
    """Token ids of `vocabulary` many, the same in every process."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Takes about 1 us a word."""
        ids: list[int] = []
        for match in _PIECES.finditer(text):
            piece = match[0]
            if match.lastgroup == "word":
                self._encode_word(piece, ids)
            elif match.lastgroup == "pair":
                code = ord(piece)
                lead = FIRST_LEAD + (code - 0x6000 >> 6) if code < 0x7000 else EMOJI_LEAD
                ids += (lead, FIRST_TAIL + (code & 63))
            else:
                known = _PUNCTUATION_IDS.get(piece)
                ids.append(self._hashed(piece) if known is None else known)
        return ids

    def _encode_word(self, piece: str, ids: list[int]) -> None:
        if piece[0] == " ":
            rank = _rank(piece[1:])
            if rank is not None and FIRST_WORD + rank < self.vocabulary:
                ids.append(FIRST_WORD + rank)
                return
        size = _LETTERS_PER_TOKEN
        ids.extend(self._hashed(piece[start : start + size]) for start in range(0, len(piece), size))

    def _hashed(self, piece: str) -> int:
        # Not a secret, and about one a word: CRC-32 takes a tenth of BLAKE2's time. Lone surrogates are no UTF-8, and
        # protobuf lets none through; a caller of ours in process might.
        return FIRST_WORD + crc32(piece.encode("utf-8", "replace")) % (self.vocabulary - FIRST_WORD)

    def token_text(self, token_id: int) -> str:
        """A token's text alone: half a character is the replacement character."""
        if token_id >= FIRST_WORD:
            return word(token_id - FIRST_WORD)
        if token_id >= FIRST_PLAIN:
            return _PUNCTUATION[token_id - FIRST_PLAIN]
        if token_id >= FIRST_LEAD:
            return REPLACEMENT
        return SPECIALS[token_id]


def paired(lead: int, tail: int) -> str:
    """The character of a lead and a tail."""
    if lead == EMOJI_LEAD:
        return chr(0x1F600 + tail - FIRST_TAIL)
    return chr(0x6000 + (lead - FIRST_LEAD << 6) + tail - FIRST_TAIL)
