"""One answer through several routers, over a fake transport and clock."""

import random
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

import pytest

from stoker.v1 import endpoint_pb2, generation_pb2, inference_pb2
from stoker_client.call import Deadline, Metadata
from stoker_client.errors import StokerError
from stoker_client.relay import ResumeRules, relayed
from stoker_client.story import Part
from stoker_common.fold import Fold
from stoker_common.refusal import Code
from stoker_common.resuming import continuation

LOST = StokerError(Code.UNAVAILABLE, "Socket closed", reason="UNAVAILABLE")
RESUME = generation_pb2.ON_SERVER_FAILURE_UNSPECIFIED
FAIL = generation_pb2.ON_SERVER_FAILURE_FAIL
EXACT = generation_pb2.ON_SERVER_FAILURE_EXACT
Script = Sequence[Part | StokerError]


def started(server: str, mode: endpoint_pb2.ResumeMode.ValueType = 0, numerics: str = "c1", ids: bool = True) -> Part:  # type: ignore[assignment]
    told = inference_pb2.Started(
        request_id="r", model="m@2", server=server, zone="zone-a", epoch="e", numerics_class=numerics, resume_mode=mode
    )
    if mode:
        told.resume_exactness = continuation(mode, (endpoint_pb2.RESUME_MODE_REPLAY, endpoint_pb2.RESUME_MODE_RESTORE))
    told.prompt_token_ids.extend([7, 8] if ids else [])
    return Part(started=told)


def delta(text: str, *ids: int) -> Part:
    return Part(deltas=[inference_pb2.Delta(text=text, token_ids=ids)])


def finished(*servers: str, tokens: int = 0) -> Part:
    last = inference_pb2.Finished(usage=inference_pb2.Usage(completion_tokens=tokens))
    last.attempts.extend(inference_pb2.Attempt(server=server) for server in servers)
    return Part(finished=last)


@dataclass
class FakeRouter:
    """Plays its scripts, one a call, the last again and again."""

    address: str
    scripts: list[Script]
    requests: list[generation_pb2.Generation] = field(default_factory=list)
    closed: int = 0
    server: inference_pb2.Started | None = None

    @property
    def who(self) -> str:
        return f"router {self.address}"

    async def stream(
        self, generation: generation_pb2.Generation, metadata: Metadata, timeout_s: float | None
    ) -> AsyncGenerator[Part, None]:
        self.requests.append(generation)
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        try:
            for said in script:
                if isinstance(said, StokerError):
                    raise said
                yield said
        finally:
            self.closed += 1


class World:
    """Routers that all connect, unless they are `down`, and a clock that moves by pauses alone."""

    def __init__(self, **routers: list[Script]) -> None:
        self.routers = [FakeRouter(name, scripts) for name, scripts in routers.items()]
        self.down: set[str] = set()
        self.lost_ones: list[str] = []
        self.now_s = 0.0
        self.paused: Callable[[], None] = lambda: None

    async def connected(self, within_s: float | None, avoid: str = "") -> AsyncGenerator[FakeRouter, None]:
        up = [router for router in self.routers if router.address not in self.down]
        for router in sorted(up, key=lambda router: router.address == avoid):
            yield router
        if not up:
            raise StokerError(Code.UNAVAILABLE, "nothing answers", reason="UNREACHABLE")

    def lost(self, address: str) -> None:
        self.lost_ones.append(address)

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.paused()

    async def answer(
        self,
        on_failure: generation_pb2.OnServerFailure.ValueType = RESUME,
        timeout_s: float | None = None,
    ) -> list[Part]:
        asked = generation_pb2.Generation(model="m", text="hello", on_server_failure=on_failure)
        parts = relayed(
            self,
            asked,
            (),
            Deadline(timeout_s),
            rules=ResumeRules(),
            rng=random.Random(0),
            clock=lambda: self.now_s,
            sleep=self.sleep,
        )
        return [part async for part in parts]


def folded(parts: Sequence[Part]) -> inference_pb2.GenerateResponse:
    fold = Fold()
    for part in parts:
        fold.add(part)
    return fold.response()


BROKEN: Script = [started("s1"), delta("hé", 1, 2), LOST]
REST: Script = [started("s2", endpoint_pb2.RESUME_MODE_RESTORE), delta("llo", 3), finished("s2", tokens=3)]


async def test_the_caller_sees_one_answer() -> None:
    world = World(a=[BROKEN], b=[REST])
    parts = await world.answer()
    answer = folded(parts)
    assert (answer.outputs[0].text, list(answer.outputs[0].token_ids)) == ("héllo", [1, 2, 3])
    assert answer.started.server == "s1" and sum(part.HasField("started") for part in parts) == 1
    assert [(each.server, each.code) for each in answer.finished.attempts] == [("s1", 14), ("s2", 0)]
    assert answer.finished.attempts[0].tokens == 2
    assert answer.finished.usage.completion_tokens == 3
    assert answer.finished.exactness == inference_pb2.EXACTNESS_BYTES_EXACT
    assert world.lost_ones == ["a"]
    assert all(router.closed == len(router.requests) for router in world.routers)


async def test_the_next_router_is_told_what_came() -> None:
    world = World(a=[BROKEN], b=[REST])
    await world.answer()
    (asked,) = world.routers[1].requests
    state = asked.resume
    assert asked.model == state.model == "m@2" and asked.WhichOneof("prompt") is None and asked.request_id == "r"
    assert list(state.prompt_token_ids) == [7, 8] and state.numerics_class == "c1"
    (output,) = state.outputs
    assert (list(output.token_ids), output.text_bytes, output.finished) == ([1, 2], 3, False)


async def test_a_stream_that_just_ends_is_broken_too() -> None:
    answer = folded(await World(a=[BROKEN[:2]], b=[REST]).answer())
    assert answer.outputs[0].text == "héllo"


async def test_a_model_server_that_is_called_itself_is_an_attempt_too() -> None:
    rest = [started("s2", endpoint_pb2.RESUME_MODE_PREFILL), delta("llo", 3), finished()]
    answer = folded(await World(a=[BROKEN], b=[rest]).answer())
    assert [(each.server, each.code, each.tokens) for each in answer.finished.attempts] == [("s1", 14, 2), ("s2", 0, 1)]
    assert answer.finished.exactness == inference_pb2.EXACTNESS_VALID


async def test_another_numerics_class_is_no_promise_of_bytes() -> None:
    rest = [started("s2", endpoint_pb2.RESUME_MODE_RESTORE, "c2"), finished("s2")]
    rest[-1].finished.exactness = inference_pb2.EXACTNESS_BYTES_EXACT
    answer = folded(await World(a=[BROKEN], b=[rest]).answer())
    assert answer.finished.exactness == inference_pb2.EXACTNESS_STATE_EXACT


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.CANCELLED, Code.INTERNAL, Code.UNKNOWN])
async def test_whatever_grpc_calls_it_a_lost_call_goes_on(code: Code) -> None:
    broken = [*BROKEN[:2], StokerError(code, "gone")]
    assert folded(await World(a=[broken], b=[REST]).answer()).outputs[0].text == "héllo"


@pytest.mark.parametrize(
    "error",
    [
        StokerError(Code.UNAVAILABLE, "no mode", reason="NOT_RESUMABLE"),
        StokerError(Code.DEADLINE_EXCEEDED, "late"),
        StokerError(Code.RESOURCE_EXHAUSTED, "read faster", reason="CLIENT_TOO_SLOW"),
        StokerError(Code.CANCELLED, "closed", reason="CLIENT_CLOSED"),
        StokerError(Code.INVALID_ARGUMENT, "wrong", reason="INVALID_FIELD"),
    ],
)
async def test_what_the_router_means_is_not_taken_elsewhere(error: StokerError) -> None:
    world = World(a=[[*BROKEN[:2], error]], b=[REST])
    with pytest.raises(StokerError) as raised:
        await world.answer()
    assert raised.value is error and not world.routers[1].requests


async def test_the_same_router_goes_on_when_it_is_back() -> None:
    world = World(a=[BROKEN, REST])

    def back() -> None:
        world.down.clear()

    world.paused = back
    world.routers[0].scripts[0] = [*BROKEN[:2], LOST]
    assert folded(await world.answer()).outputs[0].text == "héllo"


async def test_a_router_that_just_started_is_asked_again() -> None:
    unread = StokerError(Code.UNAVAILABLE, "not read", reason="CATALOG_UNREAD")
    unknown = StokerError(Code.NOT_FOUND, "no model yet", reason="MODEL_NOT_FOUND")
    world = World(a=[BROKEN, [unread]], b=[[unread], [unknown], REST])
    answer = folded(await world.answer())
    assert answer.outputs[0].text == "héllo" and [each.server for each in answer.finished.attempts] == ["s1", "s2"]
    assert 0 < world.now_s < 1


async def test_it_gives_up_when_no_router_is_there_for_so_long() -> None:
    world = World(a=[BROKEN, [LOST]])
    with pytest.raises(StokerError) as raised:
        await world.answer()
    assert raised.value is LOST
    assert 10 <= world.now_s < 12


async def test_nobody_connects_any_more() -> None:
    world = World(a=[BROKEN])
    world.lost = world.down.add  # type: ignore[method-assign,assignment]
    with pytest.raises(StokerError, match="Socket closed"):
        await world.answer()
    assert 10 <= world.now_s < 12


async def test_the_deadline_ends_the_search() -> None:
    world = World(a=[BROKEN, [LOST]])
    with pytest.raises(StokerError) as raised:
        await world.answer(timeout_s=0.02)
    assert raised.value.code is Code.DEADLINE_EXCEEDED


async def test_fail_is_honoured() -> None:
    world = World(a=[BROKEN], b=[REST])
    with pytest.raises(StokerError, match="after 2 tokens") as raised:
        await world.answer(FAIL)
    assert (raised.value.code, raised.value.reason) == (Code.UNAVAILABLE, "ROUTER_LOST")
    assert not world.routers[1].requests


async def test_without_the_prompts_ids_nobody_can_go_on() -> None:
    world = World(a=[[started("s1", ids=False), LOST]], b=[REST])
    with pytest.raises(StokerError) as raised:
        await world.answer()
    assert raised.value.reason == "NOT_RESUMABLE" and not world.routers[1].requests


async def test_exact_does_not_go_on_with_other_bytes() -> None:
    rest = [started("s2", endpoint_pb2.RESUME_MODE_RESTORE, "c2"), delta("llo", 3), finished()]
    with pytest.raises(StokerError) as raised:
        await World(a=[BROKEN], b=[rest]).answer(EXACT)
    assert raised.value.reason == "NOT_RESUMABLE"


async def test_before_the_first_part_the_request_is_sent_as_it_is_and_once_to_each() -> None:
    world = World(a=[[LOST]], b=[[started("s2"), finished()]])
    assert folded(await world.answer()).started.server == "s2"
    assert world.routers[1].requests[0].text == "hello" and not world.routers[1].requests[0].HasField("resume")
    world = World(a=[[LOST]], b=[[LOST]])
    with pytest.raises(StokerError):
        await world.answer()
    assert [len(router.requests) for router in world.routers] == [1, 1] and world.now_s == 0
