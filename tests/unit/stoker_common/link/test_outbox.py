import asyncio

import pytest

from stoker.v1 import worker_link_pb2
from stoker_common.link.outbox import LARGEST_CHUNK_BYTES, Outbox
from stoker_common.refusal import Code, Refusal


def test_what_waits_is_merged_into_one_step() -> None:
    outbox = Outbox()
    outbox.put(1, b"ab", 1)
    outbox.put(2, b"x", 1)
    outbox.put(1, b"cd", 2)
    outbox.end(1)
    step = outbox.take(7)
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
    first, second = outbox.take(1).outputs
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
        steps.append([output.stream_id for output in outbox.take(1).outputs])
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
