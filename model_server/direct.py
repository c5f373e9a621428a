"""The streams that clients have from this server themselves: their routers are told what becomes of each."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from model_server.inflight import Entry
from model_server.parts import duration
from stoker.v1 import inference_pb2, worker_link_pb2
from stoker.v1.ticket_pb2 import Claims
from stoker_common import status
from stoker_common.clock import Clock
from stoker_common.refusal import Code, Refusal, unavailable

# A router opens its link to another zone's server when it first sends a client there, and forgets a reservation of
# which nobody speaks for some 10 s.
_REMEMBER_S = 10.0
# Streams that ended meanwhile, of all routers: some hundred bytes each.
_REMEMBER_MOST = 4096

# Takes news for one attached router process.
Tell = Callable[[worker_link_pb2.DirectStream], None]


class DirectStream:
    """One such stream."""

    def __init__(self, claims: Claims, tell: Callable[[str, worker_link_pb2.DirectStream], None], clock: Clock) -> None:
        self.claims = claims
        self._tell = tell
        self._clock = clock
        self._said: list[tuple[float, worker_link_pb2.DirectStream]] = []
        self._entry: Entry | None = None
        self._why = ""

    def runs(self, entry: Entry) -> None:
        """It was let in: from now on it can be ended from outside."""
        self._entry = entry
        if self._why:
            self.move(self._why)

    def started(self, started: inference_pb2.Started) -> None:
        """Its first part goes out."""
        part = inference_pb2.GenerateStreamResponse()
        part.started.CopyFrom(started)
        # As many ids as the prompt has tokens, and nobody there wants them.
        del part.started.prompt_token_ids[:], part.started.prompt_logprobs[:]
        self._say(part=part.SerializeToString())

    def finished(self, finished: inference_pb2.Finished) -> None:
        """Its last part goes out."""
        part = inference_pb2.GenerateStreamResponse(finished=finished)
        self._say(part=part.SerializeToString(), last=True)

    def failed(self, refusal: Refusal) -> None:
        """It ended otherwise."""
        details = status.to_rpc_status(refusal)
        error = worker_link_pb2.StreamError(
            code=refusal.code.value, message=details.message, status=details.SerializeToString()
        )
        self._say(last=True, error=error)

    def move(self, why: str) -> None:
        """Its client is to go on elsewhere."""
        self._why = why
        if self._entry is not None:
            self._entry.end(lambda: unavailable(why, reason="SERVER_MAINTENANCE"))

    def _say(self, **news: object) -> None:
        said = worker_link_pb2.DirectStream(reservation=self.claims.reservation, **news)  # type: ignore[arg-type]
        self._said.append((self._clock(), said))
        self._tell(self.claims.router, said)

    def said(self) -> Iterator[worker_link_pb2.DirectStream]:
        """All that was said of it, for who could not hear it then."""
        for at_s, said in self._said:
            again = worker_link_pb2.DirectStream()
            again.CopyFrom(said)
            again.ago.CopyFrom(duration(self._clock() - at_s))
            yield again


class DirectStreams:
    """All of a server, and the routers that are attached. Belongs to one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._streams: dict[bytes, DirectStream] = {}
        self._ended: deque[tuple[float, DirectStream]] = deque(maxlen=_REMEMBER_MOST)
        # Several processes may go by one router's name: each is told, and knows its own.
        self._routers: dict[str, list[Tell]] = {}

    @contextmanager
    def attached(self, router: str, tell: Tell) -> Iterator[None]:
        """`tell` takes the news for `router`, for as long as the block runs, and what it has missed at once."""
        self._forget()
        for stream in (*(ended for _, ended in self._ended), *self._streams.values()):
            if stream.claims.router == router:
                for news in stream.said():
                    tell(news)
        self._routers.setdefault(router, []).append(tell)
        try:
            yield
        finally:
            self._routers[router].remove(tell)
            if not self._routers[router]:
                del self._routers[router]

    @contextmanager
    def stream(self, claims: Claims | None) -> Iterator[DirectStream | None]:
        """A request that came with `claims`, for as long as the block runs; None where they name no reservation.
        However it ends, its router is told."""
        if claims is None or not claims.reservation:
            yield None
            return
        stream = self._streams[claims.reservation] = DirectStream(claims, self._tell, self._clock)
        try:
            yield stream
        except asyncio.CancelledError:
            stream.failed(Refusal(Code.CANCELLED, "the client left"))
            raise
        except Refusal as refusal:
            stream.failed(refusal)
            raise
        except Exception:
            stream.failed(Refusal(Code.INTERNAL, "an error that the server's log has"))
            raise
        finally:
            self._streams.pop(claims.reservation, None)
            self._forget()
            self._ended.append((self._clock(), stream))

    def running_for(self, router: str) -> Iterator[worker_link_pb2.DirectStream]:
        """For a router that is to know what is still there."""
        for reservation, stream in self._streams.items():
            if stream.claims.router == router:
                yield worker_link_pb2.DirectStream(reservation=reservation)

    def move(self, reservation: bytes, why: str) -> None:
        """A router asks for its reservation's stream to go on elsewhere."""
        stream = self._streams.get(reservation)
        if stream is not None:
            stream.move(why)

    def _forget(self) -> None:
        while self._ended and self._clock() - self._ended[0][0] > _REMEMBER_S:
            self._ended.popleft()

    def _tell(self, router: str, news: worker_link_pb2.DirectStream) -> None:
        for tell in self._routers.get(router, ()):
            tell(news)
