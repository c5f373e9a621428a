"""A prompt's token ids for the simulator: refused before time goes into tokenising it if it cannot be."""

import asyncio

from model_server.engine import EngineRefused
from model_server.engines.sim_chat import render
from model_server.engines.sim_refuse import refuse_foreign_ids, refuse_hopeless
from model_server.engines.sim_settings import SimSettings
from model_server.engines.sim_tokenizer import SimTokenizer
from stoker.v1 import generation_pb2

# 20 to 50 ms of tokenising: more goes to a thread.
_LONG_BYTES = 100_000


async def encode(generation: generation_pb2.Generation, tokenizer: SimTokenizer, settings: SimSettings) -> list[int]:
    """The prompt's token ids; in a thread if the prompt is long. Raises EngineRefused naming the field."""
    kind = generation.WhichOneof("prompt")
    match kind:
        case "token_ids":
            refuse_foreign_ids("token_ids", generation.token_ids.ids, settings.vocabulary)
            ids = list(generation.token_ids.ids)
        case "text":
            text = generation.text
            refuse_hopeless(generation, "text", len(text), settings)
            tokenize = tokenizer.encode
            ids = await asyncio.to_thread(tokenize, text) if len(text) > _LONG_BYTES else tokenize(text)
        case "chat":
            chat, size = generation.chat, generation.chat.ByteSize()
            # A character is 4 bytes at most.
            refuse_hopeless(generation, "chat", size // 4, settings)
            ids = await asyncio.to_thread(render, chat, tokenizer) if size > _LONG_BYTES else render(chat, tokenizer)
        case _:
            raise EngineRefused("prompt", "needs one of text, token_ids, chat")
    if not ids:
        raise EngineRefused(kind, "is empty: give at least one token")
    return ids
