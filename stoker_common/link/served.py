"""The generations that an attached peer has under way, at the link's served end: by the numbers that it gave them."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from opentelemetry.context import Context

from stoker.v1 import generation_pb2, router_pb2, worker_link_pb2
from stoker_common import status, tracing, wire
from stoker_common.link.outbox import Outbox
from stoker_common.refusal import Code, Refusal, invalid, unimplemented


@dataclass(frozen=True, slots=True)
class Start:
    """A generation that the peer asks for. `remaining_s` is what its deadline leaves, None without one."""

    stream_id: int
    generation: generation_pb2.Generation
    remaining_s: float | None
    parent: Context
    ticket: bytes
    bid: worker_link_pb2.Bid | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """A server that the peer asks for, as by `RouterService/Route`. Else as `Start`."""

    stream_id: int
    request: router_pb2.RouteRequest
    remaining_s: float | None
    parent: Context


# Serves one, putting what it gets into the outbox. Raises what the peer is to be told.
Serve = Callable[[Start], Awaitable[None]]
Route = Callable[[Ask], Awaitable[None]]


class ServedStreams:
    """All of one link. `method` is what the log calls it."""

    def __init__(self, outbox: Outbox, method: str, serve: Serve, route: Route | None = None) -> None:
        """Without `route` this side chooses no servers."""
        self._outbox = outbox
        self._method = method
        self._serve = serve
        self._route = route
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def take(self, request: worker_link_pb2.AttachRequest, tasks: asyncio.TaskGroup) -> bool:
        """A message of the peer's came. Whether it was about streams: that one begins, in `tasks`, or is to end."""
        if request.HasField("start"):
            self._begin(request.start, tasks)
        elif request.HasField("cancel"):
            task = self._tasks.get(request.cancel.stream_id)
            if task is not None:
                task.cancel()
        else:
            return False
        return True

    def cancel(self) -> None:
        """The peer is gone: nothing is served for it any more."""
        for task in self._tasks.values():
            task.cancel()

    def _begin(self, start: worker_link_pb2.StartStream, tasks: asyncio.TaskGroup) -> None:
        stream_id = start.stream_id
        if stream_id in self._tasks or self._outbox.holds(stream_id):
            # An output under that number would be the other stream's.
            text = f"{stream_id} is in use; give each stream a number of its own"
            refused = worker_link_pb2.Refused(
                stream_id=stream_id, error=stream_error(invalid("start.stream_id", text, reason="STREAM_IN_USE"))
            )
            self._outbox.say(worker_link_pb2.AttachResponse(refused=refused))
            return
        task = self._tasks[stream_id] = tasks.create_task(self._run(start))
        # Not in its own `finally`: a task that is cancelled before it began has none.
        task.add_done_callback(partial(self._ended, stream_id))

    def _ended(self, stream_id: int, _: "asyncio.Task[None]") -> None:
        del self._tasks[stream_id]
        self._outbox.wake()

    async def _run(self, start: worker_link_pb2.StartStream) -> None:
        stream_id, outbox = start.stream_id, self._outbox
        try:
            if start.HasField("window_tokens"):
                raise unimplemented("start.window_tokens", "is not there yet; leave it out")
            remaining_s = start.timeout.ToNanoseconds() / 1e9 if start.HasField("timeout") else None
            parent = tracing.extract((("traceparent", start.traceparent),))
            if start.route:
                if self._route is None:
                    raise Refusal(Code.UNIMPLEMENTED, "servers are asked for at routers; this is none")
                await self._route(Ask(stream_id, wire.parse(router_pb2.RouteRequest, start.route), remaining_s, parent))
            else:
                generation = wire.parse(generation_pb2.Generation, start.generation)
                bid = start.bid if start.HasField("bid") else None
                await self._serve(Start(stream_id, generation, remaining_s, parent, start.ticket, bid))
            outbox.end(stream_id)
        except asyncio.CancelledError:
            outbox.drop(stream_id)
            raise
        except Exception as error:
            outbox.end(stream_id, stream_error(wire.refusal_of(error, self._method)))


def stream_error(refusal: Refusal) -> worker_link_pb2.StreamError:
    """A refusal as links carry it."""
    details = status.to_rpc_status(refusal)
    return worker_link_pb2.StreamError(
        code=refusal.code.value, message=details.message, status=details.SerializeToString()
    )
