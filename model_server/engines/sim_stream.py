"""A sequence on its way to its reader: draws its tokens, turns them into outputs, keeps those not yet read."""

import asyncio
from collections import deque

from model_server.engine import EngineError, EngineOutput, EngineRefused, EngineRequest, ResumeMode
from model_server.engines.sim_draw import TokenSource
from model_server.engines.sim_sequence import Sequence
from model_server.engines.sim_settings import SimSettings
from model_server.engines.sim_text import OutputText
from model_server.engines.sim_tokenizer import END_OF_TEXT, SimTokenizer
from stoker.v1 import inference_pb2

_NOT_ENDED = inference_pb2.FINISH_REASON_UNSPECIFIED
_STOP = inference_pb2.FINISH_REASON_STOP
_LENGTH = inference_pb2.FINISH_REASON_LENGTH


class SimStream(Sequence):
    """One request in the simulator. Raises EngineRefused when made from a request that allows no token.

    What another engine emitted is either forced when its place comes (`_forced`), or taken in at once (`_take_in`).
    """

    __slots__ = (
        "_end",
        "_failure",
        "_first_place",
        "_forced",
        "_include_stop",
        "_interval",
        "_limit",
        "_logprobs",
        "_min_tokens",
        "_opening",
        "_outbox",
        "_produced",
        "_prompt_tokens",
        "_source",
        "_stop_ids",
        "_text",
        "_unsent_ids",
        "_unsent_logprobs",
        "_unsent_text",
        "_waiter",
        "arrived_at",
        "finished",
        "prefill_ms",
        "queue_ms",
    )

    def __init__(self, request: EngineRequest, settings: SimSettings, tokenizer: SimTokenizer, now: float) -> None:
        sampling = request.sampling
        super().__init__(
            request.prompt_token_ids,
            settings.block_tokens,
            priority=request.priority,
            cache_salt=request.cache_salt,
            adapter=request.adapter,
            reads_cache=not sampling.skip_reading_prefix_cache,
        )
        self.arrived_at = now
        # How long it waited to run for the first time; None before that.
        self.queue_ms: float | None = None
        # From there to its first token.
        self.prefill_ms: float | None = None
        self.finished = False
        emitted, prompt = request.emitted_token_ids, request.prompt_token_ids
        replays = request.resume_mode is ResumeMode.REPLAY
        self._prompt_tokens = len(prompt)
        self._forced = emitted if replays else ()
        # Places count from here in `_source`.
        self._first_place = 0
        if request.resume_mode is ResumeMode.PREFILL and emitted:
            self._first_place = len(emitted)
            prompt += emitted
        self._source = TokenSource(
            prompt, sampling, tokenizer, settings.eos_probability, self._first_place, request.adapter
        )
        self._text: OutputText | None = None
        if sampling.detokenize or not sampling.HasField("detokenize"):
            self._text = OutputText(
                tokenizer,
                sampling.stop,
                include_stop=sampling.include_stop_str_in_output,
                skip_specials=sampling.skip_special_tokens or not sampling.HasField("skip_special_tokens"),
            )
        self._limit = min(request.max_tokens, settings.max_model_tokens - len(request.prompt_token_ids))
        self._min_tokens = sampling.min_tokens
        self._include_stop = sampling.include_stop_str_in_output
        self._end = -1 if sampling.ignore_eos else END_OF_TEXT
        self._stop_ids = frozenset(sampling.stop_token_ids)
        self._logprobs = sampling.logprobs if sampling.HasField("logprobs") else -1
        self._interval = sampling.stream_interval if sampling.HasField("stream_interval") else 1
        self._produced = 0
        self._unsent_ids: tuple[int, ...] = ()
        self._unsent_logprobs: list[inference_pb2.TokenLogprobs] = []
        self._unsent_text = ""
        self._outbox: deque[EngineOutput] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._failure: EngineError | None = None
        # What was emitted elsewhere, not sent yet.
        self._opening: EngineOutput | None = None
        if emitted and not replays:
            self._take_in(emitted)

    def advance(self) -> None:
        """Draw the next token; the reader gets it, or with it all that stream_interval held back."""
        if self._opening is not None:
            self._outbox.append(
                self._opening._replace(
                    cached_tokens=self._cached_tokens, queue_ms=self.queue_ms, prefill_ms=self.prefill_ms
                )
            )
            self._opening = None
        place = self._produced
        forced = self._forced
        token_id = forced[place] if place < len(forced) else self._source.token(place - self._first_place)
        self.tokens.append(token_id)
        if self._logprobs >= 0:
            self._unsent_logprobs.append(self._source.logprobs(place - self._first_place, token_id, self._logprobs))
        new_text, reason, stop_string, stop_token_id = self._take(token_id)
        if reason != _NOT_ENDED:
            if self._produced < len(forced):
                self.fail(_past_the_end(self._produced))
                self.finished = True
                return
            self.finished = True
        elif 0 < place and len(self._unsent_ids) + 1 < self._interval:
            self._unsent_ids += (token_id,)
            self._unsent_text += new_text
            return
        self._send(token_id, new_text, reason, stop_string, stop_token_id)

    def _take_in(self, emitted: tuple[int, ...]) -> None:
        """Go on behind what was emitted elsewhere, which is sent with the first token that is new."""
        whole = ""
        reason = _NOT_ENDED
        stop_string: str | None = None
        stop_token_id: int | None = None
        for token_id in emitted:
            if reason != _NOT_ENDED:
                raise _past_the_end(self._produced)
            self.tokens.append(token_id)
            new_text, reason, stop_string, stop_token_id = self._take(token_id)
            whole += new_text
        opening = EngineOutput(whole, emitted, (), (), reason, stop_string, stop_token_id)
        if reason == _NOT_ENDED:
            self._opening = opening
        else:
            self.finished = True
            self._outbox.append(opening)

    def _take(self, token_id: int) -> tuple[str, inference_pb2.FinishReason.ValueType, str | None, int | None]:
        """Count a token in: the text that it adds, why it ends the output, the stop string or token that does."""
        place = self._produced
        self._produced = place + 1
        ended = token_id == self._end
        stopped = token_id in self._stop_ids
        text = self._text
        new_text = ""
        stop_string = None
        if text is not None:
            if not (ended or stopped):
                new_text = text.push(token_id, may_stop=place >= self._min_tokens)
                stop_string = text.stopped_by
            elif self._include_stop:
                new_text = text.push(token_id, may_stop=False)

        reason = _NOT_ENDED
        if ended or stopped or stop_string is not None:
            reason = _STOP
        elif place + 1 >= self._limit:
            reason = _LENGTH
        if reason != _NOT_ENDED and text is not None:
            new_text += text.flush()
        return new_text, reason, stop_string, token_id if stopped and not ended else None

    def _send(
        self,
        token_id: int,
        new_text: str,
        reason: inference_pb2.FinishReason.ValueType,
        stop_string: str | None,
        stop_token_id: int | None,
    ) -> None:
        token_ids: tuple[int, ...] = (token_id,)
        if self._unsent_ids:
            token_ids = self._unsent_ids + token_ids
            new_text = self._unsent_text + new_text
            self._unsent_ids = ()
            self._unsent_text = ""
        logprobs: tuple[inference_pb2.TokenLogprobs, ...] = ()
        if self._unsent_logprobs:
            logprobs = tuple(self._unsent_logprobs)
            self._unsent_logprobs.clear()
        output = EngineOutput(
            new_text,
            token_ids,
            logprobs,
            (),
            reason,
            stop_string,
            stop_token_id,
            self._cached_tokens,
            self.queue_ms,
            self.prefill_ms,
        )
        self._outbox.append(output)
        self._wake()

    @property
    def _cached_tokens(self) -> int:
        return min(self.cached_tokens, self._prompt_tokens)

    def fail(self, failure: EngineError) -> None:
        """Let the reader fail, once it has read what was produced before. A finished stream stays finished."""
        if not self.finished:
            self._failure = failure
            self._wake()

    async def read(self) -> EngineOutput:
        """The next output. Raises what the stream failed with."""
        while not self._outbox:
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._outbox.popleft()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)


def _past_the_end(tokens: int) -> EngineRefused:
    return EngineRefused("emitted_token_ids", f"go on past the output's end, which came with token {tokens}")
