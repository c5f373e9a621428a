"""Streams that clients have from a server themselves: what their routers hear of them, and when."""

import pytest

from model_server.direct import DirectStream, DirectStreams
from stoker.v1 import inference_pb2, worker_link_pb2
from stoker.v1.ticket_pb2 import Claims
from stoker_common.refusal import Code, Refusal
from stoker_common.status import from_rpc_status
from tests.fakes.clock import FakeClock

CLAIMS = Claims(router="r", reservation=b"1")
STARTED = inference_pb2.Started(model="m", prompt_tokens=3, prompt_token_ids=(1, 2, 3))
FINISHED = inference_pb2.Finished(usage=inference_pb2.Usage(completion_tokens=7))


class Server:
    """Its streams, and what the router `r` hears while it is attached."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.streams = DirectStreams(self.clock)
        self.heard: list[worker_link_pb2.DirectStream] = []

    def whole(self) -> None:
        with self.streams.stream(CLAIMS) as stream:
            assert isinstance(stream, DirectStream)
            stream.started(STARTED)
            stream.finished(FINISHED)

    def told(self) -> list[tuple[str, float]]:
        """What was heard, and how long ago it had happened."""
        kinds = []
        for news in self.heard:
            part = inference_pb2.GenerateStreamResponse.FromString(news.part)
            kind = "started" if part.HasField("started") else "finished" if part.HasField("finished") else "failed"
            kinds.append((kind, news.ago.ToTimedelta().total_seconds()))
        return kinds


def test_a_router_that_is_attached_hears_at_once() -> None:
    server = Server()
    with server.streams.attached("r", server.heard.append):
        server.whole()
        assert server.told() == [("started", 0.0), ("finished", 0.0)]
        part = inference_pb2.GenerateStreamResponse.FromString(server.heard[0].part)
        assert (part.started.prompt_tokens, len(part.started.prompt_token_ids)) == (3, 0)
        assert [news.last for news in server.heard] == [False, True]


def test_a_router_whose_link_comes_up_later_hears_what_runs_and_since_when() -> None:
    """It opens its link to another zone's server when it first sends a client there."""
    server = Server()
    with server.streams.stream(CLAIMS) as stream:
        assert stream is not None
        stream.started(STARTED)
        server.clock.advance(1.5)
        with server.streams.attached("another", server.heard.append):
            assert not server.heard
        with server.streams.attached("r", server.heard.append):
            assert server.told() == [("started", 1.5)]


def test_it_hears_of_streams_that_are_over_as_long_as_it_holds_their_reservations() -> None:
    server = Server()
    server.whole()
    with pytest.raises(Refusal), server.streams.stream(Claims(router="r", reservation=b"2")):
        raise Refusal(Code.INTERNAL, "broke")
    server.clock.advance(4.0)
    with server.streams.attached("r", server.heard.append):
        assert server.told() == [("started", 4.0), ("finished", 4.0), ("failed", 4.0)]
        assert from_rpc_status(server.heard[-1].error.status).message == "broke"
    server.clock.advance(7.0)
    server.heard.clear()
    with server.streams.attached("r", server.heard.append):
        assert not server.heard


def test_a_stream_without_a_reservation_is_nobodys_news() -> None:
    server = Server()
    with server.streams.attached("", server.heard.append), server.streams.stream(Claims(router="")) as stream:
        assert stream is None
    assert not server.heard
