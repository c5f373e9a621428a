"""A prompt as a chain of hashes over blocks of it: what two prompts have in common, without a tokenizer.

Each hash stands for all of the prompt up to its block's end, so equal hashes mean an equal beginning. What is hashed is
a canonical form of the prompt: the bytes of a text; the packed ids; of a chat its tools and template arguments, then
its messages one after the other, framed by bytes that no UTF-8 text has. A chat with the model's answer is therefore
an extension of the chat before, and the next turn's chain begins with this turn's.

The model, the form of the prompt and the cache salt go ahead of everything: chains of different salts share nothing.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise

from stoker.v1 import generation_pb2
from stoker.v1.generation_pb2 import Chat, ChatMessage, Generation

# About 64 tokens of English.
_SMALLEST_BLOCK_BYTES = 256
# A block is at most this part of what lies before it: a chain grows with the logarithm of its prompt, and what it says
# of a long prompt is right to 3 %.
_PART = 32
# No chain is longer: a prompt is longer than any model's context then.
_MOST_BYTES = 1 << 26

# Never in UTF-8, so no text can look like a frame.
_MESSAGE, _FIELD, _PART_END, _CALL, _IMAGE, _TOOL = b"\xff", b"\xfe", b"\xfd", b"\xfc", b"\xfb", b"\xfa"


def _ends() -> Iterator[int]:
    """Where blocks end, in bytes: the same places in every prompt."""
    end = 0
    while end < _MOST_BYTES:
        yield end
        end += max(_SMALLEST_BLOCK_BYTES, (1 << (end // _PART).bit_length()) >> 1)


_ENDS = tuple(_ends())


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prompt's chain. `size_bytes` is the canonical form's, of which the last bytes may fill no block."""

    hashes: tuple[int, ...] = ()
    size_bytes: int = 0
    # What an extension goes on from: the chain's end in full, and the bytes behind its last block.
    _state: bytes = b""
    _rest: bytes = b""

    def tokens(self, blocks: int, prompt_tokens: int) -> int:
        """About how many of the `prompt_tokens` its first `blocks` blocks are."""
        return prompt_tokens * _ENDS[blocks] // self.size_bytes if blocks else 0

    def extended(self, data: bytes) -> "Prefix":
        """The chain of the prompt with `data` behind it. An empty chain stays empty."""
        return _chain(self.hashes, self._state, self.size_bytes - len(self._rest), self._rest + data) if self else self

    def __bool__(self) -> bool:
        return bool(self._state)


NONE = Prefix()


def of(generation: Generation, model: str) -> Prefix:
    """The chain of a generation's prompt for `model`, as its servers name it, an adapter by its own name; `NONE` where
    it cannot be told.

    100,000 tokens of text take about half a millisecond (bench/prefix.py).
    """
    if generation.sampling.HasField("truncate_prompt_tokens"):
        return NONE  # what is left of the prompt depends on its tokens
    form = generation.WhichOneof("prompt")
    if form == "text":
        data = generation.text.encode()
    elif form == "token_ids":
        data = _packed(generation.token_ids)
    elif form == "chat":
        data = b"".join(_chat(generation.chat))
    else:
        return NONE
    # Empty where an adapter's name was: chains of routers and servers of different releases stay the same.
    seed = "\0".join((form, model, "", generation.cache_salt))
    return _chain((), sha256(seed.encode()).digest(), 0, data)


def answered(prefix: Prefix, generation: Generation, text: str, token_ids: Iterable[int]) -> Prefix:
    """The chain once the model has answered: what a next turn begins with, if it repeats the answer as it was."""
    form = generation.WhichOneof("prompt")
    if form == "token_ids":
        return prefix.extended(_packed(generation_pb2.TokenIds(ids=token_ids)))
    if form == "text":
        return prefix.extended(text.encode())
    if generation.chat.continue_final_message:
        return prefix.extended(text.encode())
    answer = ChatMessage(role="assistant", content=[generation_pb2.ContentPart(text=text)])
    return prefix.extended(b"".join(_message(answer)))


def session_hash(model: str, cache_salt: str, session: str) -> int:
    """What a session is called where its name is nobody's business. 0 without one."""
    if not session:
        return 0
    return _number(sha256("\0".join(("session", model, cache_salt, session)).encode()).digest())


def _chain(hashes: tuple[int, ...], state: bytes, at_bytes: int, data: bytes) -> Prefix:
    """The chain that goes on with `data`, which begins at `at_bytes`: a block's end."""
    size_bytes = at_bytes + len(data)
    first = len(hashes)
    states: list[bytes] = []
    for start, end in pairwise(_ENDS[first:]):
        if end > size_bytes:
            break
        state = sha256(state + data[start - at_bytes : end - at_bytes]).digest()
        states.append(state[:8])
    hashes += struct.unpack(f"<{len(states)}Q", b"".join(states))
    return Prefix(hashes, size_bytes, state, data[_ENDS[len(hashes)] - at_bytes :])


def _number(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little")


def _packed(ids: generation_pb2.TokenIds) -> bytes:
    """The ids as varints, one behind the other, as protobuf writes them: faster than any loop over them."""
    data = ids.SerializeToString()
    # Behind the field's tag and length.
    at = 1
    while at < len(data) and data[at] & 0x80:
        at += 1
    return data[at + 1 :]


def _chat(chat: Chat) -> Iterator[bytes]:
    for tool in chat.tools:
        yield from (_TOOL, tool.name.encode(), _FIELD, tool.description.encode(), _FIELD, tool.parameters_json.encode())
    yield chat.chat_template_kwargs_json.encode()
    for message in chat.messages:
        yield from _message(message)


def _message(message: ChatMessage) -> Iterator[bytes]:
    """One turn. It has no end of its own: what goes on with it is an extension, and the next one's frame ends it."""
    yield from (_MESSAGE, message.role.encode(), _FIELD, message.name.encode(), _FIELD)
    yield from (message.tool_call_id.encode(), _FIELD)
    for place, part in enumerate(message.content):
        if place:
            yield _PART_END
        if part.HasField("image"):
            yield from (_IMAGE, sha256(part.image.data).digest())
        else:
            yield part.text.encode()
    for call in message.tool_calls:
        yield from (_CALL, call.id.encode(), _FIELD, call.name.encode(), _FIELD, call.arguments_json.encode())
