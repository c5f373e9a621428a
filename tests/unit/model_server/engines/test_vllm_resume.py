"""Requests that go on with another engine's output, made ready for vLLM; what its own processes do with them."""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from model_server.engine import EngineRefused, EngineRequest, ResumeMode
from model_server.engines.vllm_resume_core import REPLAY_KEY, RESTORE_KEY, emitted_ids
from stoker.v1 import generation_pb2, inference_pb2
from tests.fakes.vllm_module import vllm_module

pytestmark = [pytest.mark.unit, pytest.mark.slow, pytest.mark.timeout(120)]

Sampling = generation_pb2.Sampling
PREFILL, REPLAY, RESTORE = ResumeMode.PREFILL, ResumeMode.REPLAY, ResumeMode.RESTORE
EOS = 2


@pytest.fixture(scope="module")
def module() -> Iterator[ModuleType]:
    """The module under test."""
    with vllm_module("vllm_resume") as found:
        yield found


def request(mode: ResumeMode, emitted: tuple[int, ...] = (5, 6, 7), **sampling: Any) -> EngineRequest:
    return EngineRequest("r", (1, 2, 3), Sampling(**sampling), 10, emitted_token_ids=emitted, resume_mode=mode)


def limits(module: ModuleType, *modes: ResumeMode, context: int = 100) -> Any:
    return module.Limits(modes or tuple(ResumeMode), 50, context)


@pytest.mark.parametrize(
    ("on_cpu", "dtype", "exact"),
    [
        (False, "bfloat16", (REPLAY, RESTORE)),
        (True, "bfloat16", (REPLAY,)),
        (True, "float32", (REPLAY, RESTORE)),
    ],
)
def test_which_modes_keep_every_byte(
    module: ModuleType, on_cpu: bool, dtype: str, exact: tuple[ResumeMode, ...]
) -> None:
    assert set(module.exact(tuple(ResumeMode), on_cpu=on_cpu, dtype=dtype)) == set(exact)
    assert module.exact((PREFILL,), on_cpu=on_cpu, dtype=dtype) == ()


class Letters:
    """A detokenizer as vLLM's: one letter an id, and `stop` ends the text before the stop string."""

    def __init__(self, stop: str = "") -> None:
        self._stop = stop
        self._text = ""

    def update(self, token_ids: list[int], stopped: bool) -> str | None:
        self._text += "" if stopped else "".join(chr(97 + token_id) for token_id in token_ids)
        if self._stop and self._text.endswith(self._stop):
            self._text = self._text.removesuffix(self._stop)
            return self._stop
        return None

    def get_next_output_text(self, finished: bool, delta: bool) -> str:
        assert delta
        return self._text if finished else self._text[: len(self._text) - max(0, len(self._stop) - 1)]


def test_prefill_shrinks_what_is_left_to_do(module: ModuleType) -> None:
    asked = module.asked(request(PREFILL, min_tokens=8, prompt_logprobs=1))
    assert asked.prompt_token_ids == (1, 2, 3, 5, 6, 7)
    assert asked.max_tokens == 7
    assert asked.sampling == Sampling(min_tokens=5)
    assert module.extra_args(request(PREFILL)) is None


@pytest.mark.parametrize(("mode", "key"), [(REPLAY, REPLAY_KEY), (RESTORE, RESTORE_KEY)])
def test_the_others_keep_the_request_and_bring_the_ids(module: ModuleType, mode: ResumeMode, key: str) -> None:
    asked = module.asked(request(mode, min_tokens=8, prompt_logprobs=1))
    assert (asked.prompt_token_ids, asked.max_tokens) == ((1, 2, 3), 10)
    assert asked.sampling == Sampling(min_tokens=8)
    params = SimpleNamespace(extra_args=module.extra_args(request(mode)))
    assert emitted_ids(params, key) == [5, 6, 7]
    assert emitted_ids(params, REPLAY_KEY if mode is RESTORE else RESTORE_KEY) == []
    assert emitted_ids(SimpleNamespace(extra_args=None), key) == []


def test_what_cannot_be_resumed_is_refused_by_name(module: ModuleType) -> None:
    form = generation_pb2.StructuredOutput(regex="a")
    for resumed, field, unsupported in (
        (request(RESTORE), "resume_mode", True),
        (request(PREFILL, (5, 50)), "emitted_token_ids", False),
        (request(PREFILL, (-1,)), "emitted_token_ids", False),
        (request(PREFILL, (5,) * 11), "emitted_token_ids", False),
        (replace(request(PREFILL), structured_output=form), "resume_mode", True),
        (request(PREFILL, thinking_token_budget=3), "resume_mode", True),
    ):
        with pytest.raises(EngineRefused) as refusal:
            module.refuse(resumed, limits(module, PREFILL, REPLAY))
        assert (refusal.value.field, refusal.value.unsupported) == (field, unsupported)
    module.refuse(replace(request(REPLAY, thinking_token_budget=3), structured_output=form), limits(module, REPLAY))


@pytest.mark.parametrize(
    ("emitted", "stop", "context", "text", "reason", "stop_string", "stop_token_id"),
    [
        ((5, 6, 7), "", 100, "fgh", "UNSPECIFIED", None, None),
        # "gx" may yet come.
        ((5, 6), "gx", 100, "f", "UNSPECIFIED", None, None),
        ((5, 6, 7), "gh", 100, "f", "STOP", "gh", None),
        ((5, 6, 9), "", 100, "fg", "STOP", None, 9),
        ((5, 6, EOS), "", 100, "fg", "STOP", None, None),
        ((5,) * 10, "", 100, "f" * 10, "LENGTH", None, None),
        ((5, 6), "", 5, "fg", "LENGTH", None, None),
        # A stop string at the very end counts as one.
        ((5,) * 10, "ff", 100, "", "STOP", "ff", None),
    ],
)
def test_the_opening_says_what_was_sent_and_whether_it_ended(
    module: ModuleType,
    emitted: tuple[int, ...],
    stop: str,
    context: int,
    text: str,
    reason: str,
    stop_string: str | None,
    stop_token_id: int | None,
) -> None:
    if stop == "ff":
        emitted = (*range(20, 28), 5, 5)
        text = "".join(chr(97 + token_id) for token_id in emitted[:8])
    params = SimpleNamespace(eos_token_id=EOS, stop_token_ids=[9])
    opening = module.opening(
        request(RESTORE, emitted, stop_token_ids=[9]), Letters(stop), params, limits(module, context=context)
    )
    assert opening.token_ids == emitted
    assert opening.text == text
    assert opening.finish_reason == inference_pb2.FinishReason.Value(f"FINISH_REASON_{reason}")
    assert (opening.stop_string, opening.stop_token_id) == (stop_string, stop_token_id)


@pytest.mark.parametrize("emitted", [(5, 9, 6), (5, EOS, 6)])
def test_nothing_comes_after_the_end(module: ModuleType, emitted: tuple[int, ...]) -> None:
    params = SimpleNamespace(eos_token_id=EOS, stop_token_ids=[9])
    with pytest.raises(EngineRefused) as refusal:
        module.opening(request(RESTORE, emitted, stop_token_ids=[9]), Letters(), params, limits(module))
    assert refusal.value.field == "emitted_token_ids"


def test_v1_forces_the_ids_in_their_places_and_lets_go(module: ModuleType) -> None:
    torch = importlib.import_module("torch")
    replay = importlib.import_module("model_server.engines.vllm_replay_v1")
    processor = object.__new__(replay.ForceEmitted)
    assert not processor.is_argmax_invariant()
    assert processor.new_req_logits_processor(SimpleNamespace(extra_args=None)) is None
    force = processor.new_req_logits_processor(SimpleNamespace(extra_args={REPLAY_KEY: [3, 1]}))
    for output, expected in (([], 3), ([3], 1), ([3, 1], 0)):
        assert int(force(output, torch.tensor([9.0, 1.0, 2.0, 3.0])).argmax()) == expected
    ruled_out = torch.tensor([9.0, 1.0, 2.0, float("-inf")])
    assert int(force([], ruled_out).argmax()) == 3


def test_v2_forces_by_slot_and_place(module: ModuleType) -> None:
    torch = importlib.import_module("torch")
    numpy = importlib.import_module("numpy")
    replay = importlib.import_module("model_server.engines.vllm_replay_v2")
    prompts = SimpleNamespace(np=numpy.array([4, 6]))
    processor = replay.ForceEmitted(None, SimpleNamespace(prompt_len=prompts))
    assert not processor.add_request(0, SimpleNamespace(extra_args=None))
    assert processor.add_request(1, SimpleNamespace(extra_args={REPLAY_KEY: [3, 1]}))

    def chosen(seen: int) -> list[int]:
        logits = torch.tensor([[9.0, 1.0, 2.0, 3.0]] * 2)
        context = SimpleNamespace(idx_mapping_np=numpy.array([1, 0]), seq_lens_upper_bound_np=numpy.array([seen, seen]))
        return [int(row.argmax()) for row in processor.apply(logits, context)]

    # Amid the prompt; its end; after one emitted token; after both.
    assert [chosen(seen)[0] for seen in (5, 6, 7, 8)] == [0, 3, 1, 0]
    assert [chosen(seen)[1] for seen in (5, 6, 7, 8)] == [0] * 4
    # The slot's next owner has nothing to force.
    assert not processor.add_request(1, SimpleNamespace(extra_args=None))
    assert chosen(6) == [0, 0]


def test_a_generator_is_left_as_so_many_tokens_leave_it(module: ModuleType) -> None:
    torch = importlib.import_module("torch")
    core = importlib.import_module("model_server.engines.vllm_resume_core")
    drawn, advanced = torch.Generator(), torch.Generator()
    for generator in (drawn, advanced):
        generator.manual_seed(7)
    for _ in range(5):
        torch.randint(0, 2**31, (1,), generator=drawn, dtype=torch.long)
    core._advance(advanced, 5, 1000)
    assert torch.equal(drawn.get_state(), advanced.get_state())
