"""What every Engine must do with an output that another one began. One suite for all of them.

A test module derives `TestXResumes(ResumeContract)`, with the fixtures that `engine_contract` names, and puts it before
the class whose last test kills the engine. "Another" engine is the same one: all that passes between them is the ids.
"""

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace

import pytest

from model_server.engine import Engine, EngineRefused, EngineRequest, ResumeMode
from stoker.v1 import generation_pb2
from tests.contract.engine_contract import (
    LENGTH,
    NOT_ENDED,
    PROMPT,
    STOP,
    Capabilities,
    Whole,
    greedy,
    request_for,
    until_idle,
    whole,
)

Sampling = generation_pb2.Sampling

# What a mode must carry over, each in the one sampling that shows whether it did.
SAMPLINGS = {
    "greedy": Sampling(temperature=0, ignore_eos=True),
    "seeded": Sampling(temperature=0.9, seed=42, ignore_eos=True),
    "seeded-top": Sampling(temperature=0.8, top_p=0.9, top_k=40, seed=-7, ignore_eos=True),
    "penalties": Sampling(
        temperature=0, frequency_penalty=1.0, presence_penalty=0.5, repetition_penalty=1.2, ignore_eos=True
    ),
}


def text_at(answer: Whole, tokens: int) -> str | None:
    """The text sent with the first so many tokens; None where no output ends there."""
    text = ""
    count = 0
    for output in answer.outputs:
        if count == tokens:
            return text
        text += output.text
        count += len(output.token_ids)
    return text if count == tokens else None


def resuming(request: EngineRequest, token_ids: list[int], mode: ResumeMode) -> EngineRequest:
    """The request again, after these ids of its output."""
    again = request_for(list(request.prompt_token_ids), request.sampling, request.max_tokens)
    return replace(
        again,
        structured_output=request.structured_output,
        emitted_token_ids=tuple(token_ids),
        resume_mode=mode,
    )


@pytest.mark.contract
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("mode", ResumeMode, ids=lambda mode: mode.value)
class ResumeContract:
    """The suite."""

    @pytest.fixture(autouse=True)
    def _can(self, request: pytest.FixtureRequest, engine: Engine, mode: ResumeMode) -> None:
        if mode not in engine.info.resume_modes and "refused" not in request.node.name:
            pytest.skip(f"the engine does not {mode.value}")

    async def test_no_mode_is_exact_that_it_does_not_offer_or_that_is_not_exact_here(
        self, engine: Engine, capabilities: Capabilities, mode: ResumeMode
    ) -> None:
        if mode in engine.info.exact_modes:
            assert mode in engine.info.resume_modes and mode is not ResumeMode.PREFILL
            assert mode in capabilities.resumes_exactly

    async def request(
        self, engine: Engine, sampling: Sampling, max_tokens: int, *, prompt: str = PROMPT
    ) -> EngineRequest:
        return request_for(await engine.encode(generation_pb2.Generation(text=prompt)), sampling, max_tokens)

    async def resumed(
        self, engine: Engine, request: EngineRequest, reference: Whole, tokens: int, mode: ResumeMode
    ) -> Whole:
        """What the request comes to, resumed after so many tokens, having checked what holds in every mode."""
        emitted = reference.token_ids[:tokens]
        answer = await whole(engine, resuming(request, emitted, mode))
        assert answer.token_ids[:tokens] == emitted
        assert len(answer.token_ids) <= request.max_tokens
        assert [output.finish_reason for output in answer.outputs[:-1]] == [NOT_ENDED] * (len(answer.outputs) - 1)
        assert answer.last.finish_reason != NOT_ENDED
        assert all(output.cached_tokens <= len(request.prompt_token_ids) for output in answer.outputs)
        before, after = text_at(reference, tokens), text_at(answer, tokens)
        if before is not None and after is not None and tokens < len(reference.token_ids):
            assert after == before
        return answer

    def same(self, answer: Whole, reference: Whole, mode: ResumeMode, capabilities: Capabilities) -> None:
        """Where the mode is exact the outputs are the same; where the ids are, all the rest is too."""
        if mode in capabilities.resumes_exactly and mode is not ResumeMode.PREFILL:
            assert answer.token_ids == reference.token_ids
        if answer.token_ids == reference.token_ids:
            assert answer.text == reference.text
            ends = [(w.last.finish_reason, w.last.stop_string, w.last.stop_token_id) for w in (answer, reference)]
            assert ends[0] == ends[1]

    @pytest.mark.parametrize("kind", SAMPLINGS)
    async def test_goes_on_as_if_nothing_had_happened(
        self, engine: Engine, capabilities: Capabilities, mode: ResumeMode, kind: str
    ) -> None:
        most = capabilities.tokens
        request = await self.request(engine, SAMPLINGS[kind], most)
        reference = await whole(engine, request)
        for tokens in (1, most // 2, most - 1):
            answer = await self.resumed(engine, request, reference, tokens, mode)
            assert len(answer.token_ids) == most
            assert answer.last.finish_reason == LENGTH
            self.same(answer, reference, mode, capabilities)

    async def test_finds_a_stop_string_across_the_seam(
        self, engine: Engine, capabilities: Capabilities, mode: ResumeMode
    ) -> None:
        most = capabilities.tokens
        plain = await self.request(engine, greedy(), most)
        unstopped = await whole(engine, plain)
        tokens = next(
            tokens
            for tokens in range(most // 3, most)
            if len(text_at(unstopped, tokens) or "") >= 2 and text_at(unstopped, tokens) != unstopped.text
        )
        seam = len(text_at(unstopped, tokens) or "")
        sampling = greedy()
        sampling.stop.append(unstopped.text[seam - 2 : seam + 2])
        request = await self.request(engine, sampling, most)
        reference = await whole(engine, request)
        assert reference.last.finish_reason == STOP
        tokens = min(tokens, len(reference.token_ids) - 1)
        answer = await self.resumed(engine, request, reference, tokens, mode)
        self.same(answer, reference, mode, capabilities)
        # One that never comes holds back only as long as it may still come.
        sampling.stop[:] = [unstopped.text[seam - 2 : seam] + "\x00"]
        request = await self.request(engine, sampling, most)
        held = await whole(engine, request)
        assert held.text == unstopped.text
        answer = await self.resumed(engine, request, held, tokens, mode)
        self.same(answer, held, mode, capabilities)

    async def test_puts_characters_together_across_the_seam(
        self, engine: Engine, capabilities: Capabilities, mode: ResumeMode
    ) -> None:
        generation = capabilities.split_characters
        if generation is None:
            pytest.skip("no generation is known whose characters have several tokens")
        form = generation.structured_output if generation.HasField("structured_output") else None
        request = request_for(await engine.encode(generation), generation.sampling, 64)
        request = replace(request, structured_output=form)
        if form is not None and mode is ResumeMode.PREFILL:
            pytest.skip("prefill loses the grammar")
        reference = await whole(engine, request)
        texts = [text_at(reference, tokens) for tokens in range(len(reference.token_ids))]
        seams = [tokens for tokens in range(1, len(texts) - 1) if texts[tokens] == texts[tokens - 1]]
        assert seams, f"no token of {reference.text!r} was half a character"
        for tokens in seams[:3]:
            answer = await self.resumed(engine, request, reference, tokens, mode)
            self.same(answer, reference, mode, capabilities)

    async def test_counts_min_tokens_from_the_beginning(
        self, engine: Engine, capabilities: Capabilities, mode: ResumeMode
    ) -> None:
        most = capabilities.tokens
        plain = await whole(engine, await self.request(engine, greedy(), most))
        middle = most // 2
        sampling = greedy()
        sampling.stop_token_ids.append(plain.token_ids[middle])
        sampling.min_tokens = middle + 2
        request = await self.request(engine, sampling, most)
        reference = await whole(engine, request)
        assert len(reference.token_ids) >= middle + 2
        for tokens in (middle - 1, middle, middle + 1):
            answer = await self.resumed(engine, request, reference, tokens, mode)
            assert len(answer.token_ids) >= middle + 2
            self.same(answer, reference, mode, capabilities)

    async def test_tells_the_logprobs_of_what_is_new(
        self, engine: Engine, capabilities: Capabilities, mode: ResumeMode
    ) -> None:
        if not capabilities.logprobs:
            pytest.skip("no logprobs")
        most = capabilities.tokens
        sampling = greedy()
        sampling.logprobs = 2
        request = await self.request(engine, sampling, most)
        reference = await whole(engine, request)
        answer = await self.resumed(engine, request, reference, most // 2, mode)
        count = 0
        for output in answer.outputs:
            count += len(output.token_ids)
            told = [logprobs.token.token_id for logprobs in output.logprobs]
            assert told == list(output.token_ids) or (count <= most // 2 and not told)
        new, expected = answer.logprobs[-(most - most // 2) :], reference.logprobs[most // 2 :]
        assert len(new) == most - most // 2
        assert all(len(logprobs.top) == 2 for logprobs in new)
        if answer.token_ids == reference.token_ids and mode is not ResumeMode.PREFILL:
            for ours, theirs in zip(new, expected, strict=True):
                assert ours.token.logprob == pytest.approx(theirs.token.logprob, abs=0.1)

    async def test_keeps_the_form(self, engine: Engine, capabilities: Capabilities, mode: ResumeMode) -> None:
        generation = capabilities.structured
        if generation is None:
            pytest.skip("no structured output")
        request = request_for(await engine.encode(generation), generation.sampling, 64)
        request = replace(request, structured_output=generation.structured_output)
        reference = await whole(engine, request)
        json.loads(reference.text)
        most = len(reference.token_ids)
        if mode is ResumeMode.PREFILL:
            with pytest.raises(EngineRefused) as refusal:
                await whole(engine, resuming(request, reference.token_ids[: most // 2], mode))
            assert refusal.value.field == "resume_mode"
            assert refusal.value.unsupported
            return
        for tokens in (1, most // 2, most - 2, most - 1):
            answer = await self.resumed(engine, request, reference, tokens, mode)
            if answer.last.finish_reason == STOP:
                json.loads(answer.text)
            self.same(answer, reference, mode, capabilities)

    async def test_after_the_last_token_only_the_end_is_left(
        self, engine: Engine, capabilities: Capabilities, mode: ResumeMode
    ) -> None:
        most = capabilities.tokens
        plain = await self.request(engine, greedy(), most)
        answer = await whole(engine, plain)
        middle = answer.token_ids[most // 2]
        by_token, by_string = greedy(), greedy()
        by_token.stop_token_ids.append(middle)
        by_string.stop.append(answer.text[len(answer.text) // 2 :][:3])
        for sampling in (greedy(), by_token, by_string):
            request = await self.request(engine, sampling, most)
            reference = await whole(engine, request)
            ended = await self.resumed(engine, request, reference, len(reference.token_ids), mode)
            assert ended.token_ids == reference.token_ids
            assert ended.text == reference.text
            assert ended.last.finish_reason == reference.last.finish_reason
            assert ended.last.stop_string == reference.last.stop_string
            assert ended.last.stop_token_id == reference.last.stop_token_id
        await until_idle(engine)

    async def test_ids_that_cannot_be_the_requests_are_refused(
        self, engine: Engine, capabilities: Capabilities, mode: ResumeMode
    ) -> None:
        if mode not in engine.info.resume_modes:
            request = await self.request(engine, greedy(), 4)
            with pytest.raises(EngineRefused) as refusal:
                await whole(engine, resuming(request, [5], mode))
            assert (refusal.value.field, refusal.value.unsupported) == ("resume_mode", True)
            return
        reference = await whole(engine, await self.request(engine, greedy(), 4))
        sampling = greedy()
        sampling.stop_token_ids.append(reference.token_ids[0])
        too_many = [*reference.token_ids, reference.token_ids[0]]
        for wrong, asked in (
            (too_many, greedy()),
            ([-1], greedy()),
            ([engine.info.vocabulary], greedy()),
            (reference.token_ids[:2], sampling),
        ):
            request = await self.request(engine, asked, 4)
            with pytest.raises(EngineRefused) as refusal:
                await whole(engine, resuming(request, wrong, mode))
            assert refusal.value.field == "emitted_token_ids"
            assert not refusal.value.unsupported
        await until_idle(engine)

    async def test_closing_it_early_frees_the_engine(self, engine: Engine, mode: ResumeMode) -> None:
        request = await self.request(engine, greedy(), 64)
        reference = await whole(engine, request)
        async with aclosing(engine.generate(resuming(request, reference.token_ids[:60], mode))) as outputs:
            await anext(outputs)
        await until_idle(engine)
        # Never begun.
        await engine.generate(resuming(request, reference.token_ids[:60], mode)).aclose()
        await until_idle(engine)

    async def test_many_at_once_lose_nothing(
        self, engine: Engine, capabilities: Capabilities, mode: ResumeMode
    ) -> None:
        most = capabilities.tokens
        requests = [
            await self.request(engine, greedy(), most, prompt=f"{PROMPT} {number}")
            for number in range(capabilities.concurrent_streams)
        ]
        references = await asyncio.gather(*(whole(engine, request) for request in requests))

        async def resume(place: int) -> tuple[Whole, int]:
            tokens = 1 + place % (most - 1)
            return await self.resumed(engine, requests[place], references[place], tokens, mode), tokens

        for (answer, _), reference in zip(
            await asyncio.gather(*(resume(place) for place in range(len(requests)))), references, strict=True
        ):
            assert len(answer.token_ids) == most
            if capabilities.batch_invariant:
                self.same(answer, reference, mode, capabilities)
        await until_idle(engine)
