import asyncio

import pytest

from stoker.v1 import inference_pb2, worker_link_pb2
from stoker_common.link.outbox import LARGEST_CHUNK_BYTES, Outbox
from stoker_common.refusal import Code, Refusal


def test_what_waits_is_merged_into_one_step() -> None:
    outbox = Outbox()
    outbox.put(1, b"ab", 1)
    outbox.put(2, b"x", 1)
    outbox.put(1, b"cd", 2)
    outbox.end(1)
    step = outbox.take(7).step
    assert step.step == 7
    assert {output.stream_id: (output.chunk, output.tokens, output.last) for output in step.outputs} == {
        1: (b"abcd", 3, True),
        2: (b"x", 1, False),
    }
    assert outbox.empty


def test_a_stream_that_is_not_read_is_refused_more_and_the_others_are_not() -> None:
    outbox = Outbox(stream_bytes=10)
    outbox.put(1, b"12345", 1)
    outbox.put(2, b"12345", 1)
    with pytest.raises(Refusal) as refused:
        outbox.put(1, b"678901", 1)
    assert (refused.value.code, refused.value.reason) == (Code.RESOURCE_EXHAUSTED, "CLIENT_TOO_SLOW")
    outbox.put(2, b"67890", 1)
    outbox.end(1, worker_link_pb2.StreamError(code=8))
    first, second = outbox.take(1).step.outputs
    assert (first.chunk, first.last, first.error.code) == (b"12345", True, 8)
    assert second.chunk == b"1234567890"
    outbox.put(2, b"x" * 10, 1)


async def test_a_cancelled_stream_says_nothing_and_the_writer_looks() -> None:
    outbox = Outbox()
    outbox.put(1, b"ab", 1)
    outbox.drop(1)
    assert outbox.empty
    assert not await outbox.filled(0.01)
    looks = asyncio.ensure_future(outbox.filled(60))
    await asyncio.sleep(0)
    outbox.drop(1)
    assert await looks


def test_what_is_too_much_for_one_message_goes_up_in_several_steps() -> None:
    outbox = Outbox(stream_bytes=100, step_bytes=150)
    for stream_id in range(1, 6):
        outbox.put(stream_id, b"x" * 60, 1)
    outbox.drop(4)
    outbox.put(6, b"y" * 5000, 1)
    steps = []
    while not outbox.empty:
        steps.append([output.stream_id for output in outbox.take(1).step.outputs])
    assert steps == [[1, 2], [3, 5], [6]]


def test_one_part_may_be_of_any_size_if_nothing_else_waits() -> None:
    """A client that reads well gets a long prompt's logprobs, which come in one part."""
    outbox = Outbox(stream_bytes=10)
    outbox.put(1, b"x" * 100, 1)
    with pytest.raises(Refusal) as slow:
        outbox.put(1, b"x", 1)
    assert slow.value.reason == "CLIENT_TOO_SLOW"
    with pytest.raises(Refusal) as large:
        outbox.put(2, bytes(LARGEST_CHUNK_BYTES + 1), 1)
    assert (large.value.code, large.value.reason) == (Code.INVALID_ARGUMENT, "ANSWER_TOO_LARGE")


async def test_messages_of_their_own_wake_the_writer() -> None:
    outbox = Outbox()
    outbox.say(worker_link_pb2.AttachResponse(goodbye=worker_link_pb2.Goodbye(reason="x")))
    assert await outbox.filled(60)
    assert [message.goodbye.reason for message in outbox.messages()] == ["x"]
    assert not await outbox.filled(0.01)


def delta(number: int) -> bytes:
    """A part of nothing but output."""
    part = inference_pb2.GenerateStreamResponse(deltas=[inference_pb2.Delta(text="x", token_ids=[number])])
    return part.SerializeToString()


STARTED = inference_pb2.GenerateStreamResponse(started=inference_pb2.Started(model="m")).SerializeToString()


def columns(step: worker_link_pb2.Step) -> list[tuple[int, bytes, int]]:
    """Row by row."""
    return list(zip(step.parts.stream_ids, step.parts.chunks, step.parts.tokens, strict=True))


def test_output_and_nothing_else_goes_in_columns_and_what_is_more_as_a_whole() -> None:
    outbox = Outbox()
    outbox.columns = True
    outbox.put(1, delta(1), 1)
    outbox.put(2, STARTED, 0)
    outbox.put(2, delta(2), 1)
    assert outbox.share(3).put(delta(3), 1)
    assert outbox.share(3).put(delta(4), 1)
    outbox.put(4, delta(5), 1)
    outbox.end(4)
    step = outbox.take(1).step
    assert columns(step) == [(1, delta(1), 1), (3, delta(3) + delta(4), 2)]
    outputs = [(output.stream_id, output.chunk, output.last) for output in step.outputs]
    assert outputs == [(2, STARTED + delta(2), False), (4, delta(5), True)]
    assert outbox.share(2).put(delta(6), 1)
    assert columns(outbox.take(2).step) == [(2, delta(6), 1)]


def test_who_reads_no_columns_gets_none() -> None:
    outbox = Outbox()
    assert outbox.share(1).put(delta(1), 1)
    step = outbox.take(0).step
    assert not step.HasField("parts")
    assert [(output.stream_id, output.chunk, output.tokens) for output in step.outputs] == [(1, delta(1), 1)]


def test_a_share_takes_no_more_than_a_stream_may_have_waiting() -> None:
    outbox = Outbox(stream_bytes=10)
    share = outbox.share(1)
    assert [share.put(b"x" * 4) for _ in range(3)] == [True, True, False]
    with pytest.raises(Refusal):
        outbox.put(1, b"x" * 4, 0)
    outbox.take(1)
    assert share.put(b"x" * 4)


async def test_a_share_wakes_the_writer() -> None:
    outbox = Outbox()
    share = outbox.share(1)
    waiting = asyncio.ensure_future(outbox.filled(60))
    await asyncio.sleep(0)
    share.put(b"x")
    assert await waiting


def test_a_number_is_free_again_once_its_end_was_taken() -> None:
    outbox = Outbox()
    first = outbox.share(1)
    outbox.end(1)
    assert outbox.holds(1)
    assert outbox.take(1).step.outputs[0].last
    assert not outbox.holds(1)
    assert outbox.share(1) is not first
