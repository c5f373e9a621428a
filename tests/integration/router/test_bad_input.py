"""What callers get wrong, sent to a router and to a server: the right status, a message that says which field and what
would be right, and a server that goes on serving."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from stoker.v1 import generation_pb2, inference_pb2
from tests.fakes.fleet import MODEL
from tests.fakes.inference import channel_to, error_details, generation, stream, unary
from tests.fakes.mesh import Mesh, mesh
from tests.fakes.until import until

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

STREAM = "/stoker.v1.InferenceService/GenerateStream"
UNARY = "/stoker.v1.InferenceService/Generate"
# Beyond gRPC's own limit for clients, so that the server's answers.
LARGE = [("grpc.max_send_message_length", 256 << 20), ("grpc.max_receive_message_length", 256 << 20)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up() -> AsyncIterator[Mesh]:
    async with mesh(1, zones=("zone-a",)) as running:
        yield running


@pytest.fixture(params=["router", "server"])
def address(request: pytest.FixtureRequest, up: Mesh) -> str:
    return up.address if request.param == "router" else up.servers[0].server.address


async def refused(address: str, method: str, data: bytes, timeout: float = 10.0) -> grpc.aio.AioRpcError:
    """How the call was refused. Bytes go out as they are."""
    async with grpc.aio.insecure_channel(address, options=LARGE) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            if method == STREAM:
                streaming: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(method)
                async for _ in streaming(data, timeout=timeout):
                    pass
            else:
                once: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
                await once(data, timeout=timeout)
        return caught.value


async def still_serves(up: Mesh) -> None:
    """A good request is answered, and nothing of the bad ones is left."""
    async with channel_to(up.address) as channel:
        assert (await unary(channel, generation(max_tokens=2), timeout=5.0)).outputs[0].text
    assert up.idle()


def text(prompt: str = "hello", **fields: object) -> generation_pb2.Generation:
    return generation_pb2.Generation(model=MODEL, text=prompt, **fields)  # type: ignore[arg-type]


def ids(*numbers: int) -> generation_pb2.Generation:
    return generation_pb2.Generation(model=MODEL, token_ids=generation_pb2.TokenIds(ids=numbers))


def with_sampling(**fields: object) -> generation_pb2.Generation:
    return text(sampling=generation_pb2.Sampling(**fields))  # type: ignore[arg-type]


INVALID = grpc.StatusCode.INVALID_ARGUMENT
CASES = [
    # the request, its status, and what its message must say
    (text(""), INVALID, ["generation.text", "empty"]),
    (ids(), INVALID, ["generation.token_ids", "empty"]),
    (generation_pb2.Generation(model=MODEL, chat=generation_pb2.Chat()), INVALID, ["generation.chat", "empty"]),
    (generation_pb2.Generation(model=MODEL), INVALID, ["generation.prompt"]),
    (generation_pb2.Generation(text="hello"), INVALID, ["generation.model"]),
    (generation_pb2.Generation(model="nobody's", text="x"), grpc.StatusCode.NOT_FOUND, ["generation.model", MODEL]),
    (generation_pb2.Generation(model="../../etc/passwd", text="x"), INVALID, ["generation.model"]),
    (text("word " * 9000), INVALID, ["generation.prompt", "8,192"]),
    (with_sampling(max_tokens=0), INVALID, ["generation.sampling.max_tokens", "1"]),
    (with_sampling(max_tokens=-1), INVALID, ["generation.sampling.max_tokens", "1"]),
    (with_sampling(max_tokens=2**31), INVALID, ["generation.sampling.max_tokens"]),
    (with_sampling(temperature=-1), INVALID, ["generation.sampling.temperature", "0"]),
    (with_sampling(temperature=math.nan), INVALID, ["generation.sampling.temperature"]),
    (with_sampling(temperature=math.inf), INVALID, ["generation.sampling.temperature"]),
    (ids(1, -1), INVALID, ["generation.token_ids", "-1"]),
    (ids(1, 32_000), INVALID, ["generation.token_ids", "32000"]),
    (with_sampling(stop=["x"] * 100_000), INVALID, ["generation.sampling.stop", "64"]),
    (with_sampling(n=10**6), INVALID, ["generation.sampling.n", "64"]),
    (with_sampling(logprobs=10**6), INVALID, ["generation.sampling.logprobs", "20"]),
    (text(lora_adapter="x"), grpc.StatusCode.NOT_FOUND, ["generation.lora_adapter"]),
    (text(lora_adapter="a\nb"), INVALID, ["generation.lora_adapter"]),
    (text(tenant=generation_pb2.Tenant(id="x")), grpc.StatusCode.UNIMPLEMENTED, ["generation.tenant"]),
    (text(resume=generation_pb2.ResumeState(model="m")), INVALID, ["generation.resume.model"]),
    (text(resume=generation_pb2.ResumeState(model=MODEL)), INVALID, ["generation.resume.prompt_token_ids"]),
    (text(on_server_failure=9), INVALID, ["generation.on_server_failure"]),
]


@pytest.mark.parametrize("method", [STREAM, UNARY])
@pytest.mark.parametrize(
    ("asked", "code", "says"), CASES, ids=[f"{i}-{' '.join(case[2])[:40]}" for i, case in enumerate(CASES)]
)
async def test_mistakes_are_named(
    up: Mesh, address: str, method: str, asked: generation_pb2.Generation, code: grpc.StatusCode, says: list[str]
) -> None:
    data = inference_pb2.GenerateStreamRequest(generation=asked).SerializeToString()
    error = await refused(address, method, data)
    assert error.code() is code
    for words in says:
        assert words in (error.details() or "")
    reason, _ = error_details(error)
    assert reason
    await still_serves(up)


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    size, out = len(payload), bytearray([number << 3 | 2])
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    out.append(size)
    return bytes(out) + payload


def generation_of(*fields: bytes) -> bytes:
    return field(1, field(1, MODEL.encode()) + b"".join(fields))


CHAT = generation_pb2.Chat(
    messages=[generation_pb2.ChatMessage(role="user", content=[generation_pb2.ContentPart(text="hello")])]
).SerializeToString()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("two texts", generation_of(field(2, b"one"), field(2, b"two"))),
        ("text and chat", generation_of(field(2, b"one"), field(4, CHAT))),
        ("ids and text", generation_of(field(3, field(1, b"\x01\x02")), field(2, b"one"))),
    ],
)
async def test_two_prompts_at_once_are_refused_and_not_chosen_from(
    up: Mesh, address: str, name: str, data: bytes
) -> None:
    error = await refused(address, STREAM, data)
    assert error.code() is INVALID
    assert "generation.prompt" in (error.details() or "")
    await still_serves(up)


GARBAGE: list[tuple[str, Callable[[], bytes]]] = [
    ("random bytes", lambda: bytes((i * 7919 + 13) % 251 for i in range(4096))),
    ("a length without its bytes", lambda: b"\x0a\xff\xff\xff\x7f"),
    ("text that is not UTF-8", lambda: generation_of(field(2, b"\xff\xfe\xfd"))),
]


@pytest.mark.parametrize("method", [STREAM, UNARY])
@pytest.mark.parametrize(("name", "data"), GARBAGE, ids=[name for name, _ in GARBAGE])
async def test_what_is_no_request_is_called_that(
    up: Mesh, address: str, method: str, name: str, data: Callable[[], bytes]
) -> None:
    error = await refused(address, method, data())
    assert error.code() is INVALID
    assert "not a stoker.v1.Generate" in (error.details() or "")
    await still_serves(up)


async def test_an_empty_request_is_told_what_is_missing(up: Mesh, address: str) -> None:
    error = await refused(address, STREAM, b"")
    assert error.code() is INVALID
    assert "generation" in (error.details() or "")
    await still_serves(up)


async def test_a_message_of_100_mb_is_refused_by_its_size(up: Mesh, address: str) -> None:
    error = await refused(address, UNARY, generation_of(field(2, b"x" * (100 << 20))), timeout=30.0)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(16 << 20) in (error.details() or "")
    await still_serves(up)


# After so long without a beat a router calls its server dead (DESIGN.md section 6).
SILENCE_S = 2.0


async def test_nobody_elses_stream_is_held_up_by_any_of_it(up: Mesh, address: str) -> None:
    bad = [inference_pb2.GenerateStreamRequest(generation=asked).SerializeToString() for asked, _, _ in CASES]
    bad += [data() for _, data in GARBAGE]
    bad.append(generation_of(field(2, b"x" * (100 << 20))))
    longest_s, sent = 0.0, asyncio.Event()

    async def listen() -> None:
        nonlocal longest_s
        async with channel_to(address) as channel:
            call = stream(channel, generation(max_tokens=8000, ignore_eos=True))
            await call.read()
            last_s = time.monotonic()
            while not sent.is_set():
                assert await call.read() is not grpc.aio.EOF, "it ended before all bad requests were answered"
                now_s = time.monotonic()
                longest_s, last_s = max(longest_s, now_s - last_s), now_s
            call.cancel()

    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(listen())
        await until(lambda: len(up.servers[0].server.in_flight) > 0)
        await asyncio.gather(*(refused(address, STREAM, data, timeout=30.0) for data in bad))
        sent.set()
        await listening
    assert longest_s < SILENCE_S
    await until(up.idle)
    await still_serves(up)


@pytest.mark.parametrize("timeout", [0.0, -1.0, 1e-4])
async def test_a_deadline_already_past(up: Mesh, address: str, timeout: float) -> None:
    data = inference_pb2.GenerateStreamRequest(generation=text()).SerializeToString()
    error = await refused(address, STREAM, data, timeout=timeout)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await still_serves(up)
