from stoker.v1 import endpoint_pb2, inference_pb2
from stoker_common.transcript import Transcript

Part = inference_pb2.GenerateStreamResponse


def delta(index: int, text: str, *ids: int, end: bool = False) -> inference_pb2.Delta:
    reason = inference_pb2.FINISH_REASON_STOP if end else inference_pb2.FINISH_REASON_UNSPECIFIED
    return inference_pb2.Delta(index=index, text=text, token_ids=ids, finish_reason=reason)


def started(model: str = "m@1", numerics_class: str = "n") -> inference_pb2.Started:
    return inference_pb2.Started(model=model, prompt_token_ids=(1, 2), numerics_class=numerics_class)


def test_what_was_received_is_what_a_server_goes_on_from() -> None:
    transcript = Transcript()
    transcript.add(Part(started=started(), deltas=[delta(0, "é", 10)]))
    transcript.add(Part(deltas=[delta(1, "", 20), delta(0, "ab", 11, 12)]))
    transcript.add(Part(deltas=[delta(1, "火", 21, end=True)]))
    state = transcript.resume_state(endpoint_pb2.RESUME_MODE_REPLAY)
    assert (state.model, list(state.prompt_token_ids), state.numerics_class) == ("m@1", [1, 2], "n")
    assert state.mode == endpoint_pb2.RESUME_MODE_REPLAY
    found = [(each.index, list(each.token_ids), each.text_bytes, each.finished) for each in state.outputs]
    assert found == [(0, [10, 11, 12], 4, False), (1, [20, 21], 3, True)]
    assert transcript.tokens == 5


def test_a_continuation_adds_to_what_a_client_brought() -> None:
    first = Transcript()
    first.add(Part(started=started(), deltas=[delta(0, "ab", 10, 11)]))
    second = Transcript.of(first.resume_state(endpoint_pb2.RESUME_MODE_UNSPECIFIED))
    assert not second.started
    second.add(Part(started=started(numerics_class="another"), deltas=[delta(0, "c", 12)]))
    state = second.resume_state(endpoint_pb2.RESUME_MODE_UNSPECIFIED)
    assert list(state.outputs[0].token_ids) == [10, 11, 12]
    assert state.outputs[0].text_bytes == 3
    # Exact means exact to the one who began.
    assert state.numerics_class == "n"


def test_parts_that_were_not_looked_into_count_as_those_that_were() -> None:
    parts = [Part(deltas=[delta(i % 2, "aé火"[i % 3], 100 + i)]) for i in range(400)]
    last = Part(deltas=[delta(0, "z", 9, end=True)], finished=inference_pb2.Finished())
    first = Part(started=started(), deltas=[delta(0, "x", 1)])
    read, unread = Transcript(), Transcript()
    for transcript in (read, unread):
        transcript.add(first)
    for number, part in enumerate(parts):
        read.add(part)
        unread.append(part.SerializeToString())
        if number == 250:  # somebody asks in the middle
            assert unread.resume_state() == read.resume_state()
    read.add(last)
    unread.add(last)
    assert unread.resume_state() == read.resume_state()
    assert unread.tokens == 402


def test_a_part_that_came_with_its_bytes_counts_the_same_however_large_it_is() -> None:
    for size in (1, 20_000):
        read, unread = Transcript(), Transcript()
        for number in range(3):
            part = Part(started=started(), deltas=[delta(0, "é" * size, number, end=number == 2)])
            read.add(part)
            unread.add(part, part.SerializeToString())
            assert unread.started
        assert unread.resume_state() == read.resume_state()
        assert unread.outputs[0].text_bytes == 6 * size


def test_a_continuation_that_starts_is_told_after_what_came_before() -> None:
    transcript = Transcript()
    transcript.add(Part(started=started()))
    transcript.append(Part(deltas=[delta(0, "a", 1)]).SerializeToString())
    transcript.add(Part(started=started(), deltas=[delta(0, "b", 2)]))
    transcript.append(Part(deltas=[delta(0, "c", 3)]).SerializeToString())
    assert list(transcript.outputs[0].token_ids) == [1, 2, 3]
