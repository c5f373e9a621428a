"""Our gRPC handlers: requests arrive as bytes and are parsed here, and what goes wrong becomes a status here, once."""

import logging
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from stoker_common.failure import first_refusal, where
from stoker_common.refusal import Code, Refusal, deadline_exceeded
from stoker_common.scan import check_single_forms
from stoker_common.status import abort

if TYPE_CHECKING:
    # Generic in the stubs alone.
    Handler = grpc.RpcMethodHandler[Any, Any]

log = logging.getLogger(__name__)

Request = TypeVar("Request", bound=Message)
Context = grpc.aio.ServicerContext[Any, Any]
# A response as a message, or already serialised (a relay passes on the bytes it got).
Response = Message | bytes
Unary = Callable[[Request, Context], Awaitable[Response]]
ServerStream = Callable[[Request, Context], AsyncGenerator[Response, None]]


def parse(message_type: type[Request], data: bytes) -> Request:
    """The message that `data` is. Raises Refusal (INVALID_ARGUMENT) where it is none, or gives a prompt twice."""
    name = message_type.DESCRIPTOR.full_name
    try:
        message = message_type.FromString(data)
    except DecodeError as error:
        text = f"the request is not a {name}: its {len(data)} bytes cannot be parsed; send a serialised {name}"
        raise Refusal(Code.INVALID_ARGUMENT, text, reason="NOT_PARSEABLE") from error
    # Of a prompt given twice the message has the last one only, and written again it is shorter. Mostly it is not.
    if message.ByteSize() != len(data):
        check_single_forms(message_type, data)
    return message


def serialise(response: Response) -> bytes:
    """The response's bytes."""
    return response if isinstance(response, bytes) else response.SerializeToString()


class Guard:
    """End the call of `method` with a status if the body raises; refuse it if its deadline has passed already.

    A Refusal, also inside an exception group, becomes its status. Any other exception becomes INTERNAL with an id
    under which the log has its traceback. Cancellation and gRPC's own exceptions (an abort among them) pass.
    """

    __slots__ = ("_context", "_method")

    def __init__(self, context: Context, method: str) -> None:
        self._context = context
        self._method = method

    async def __aenter__(self) -> None:
        # The stubs say float, and it is None without a deadline.
        remaining_s: float | None = self._context.time_remaining()
        if remaining_s is not None and remaining_s <= 0:
            late = deadline_exceeded("the deadline had passed when the call arrived; allow more time")
            await abort(self._context, late)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception) or isinstance(error, grpc.aio.BaseError):
            return False
        if _peer_went(error):
            # A link's writer may find that out before gRPC cancels the call. Nobody is left to be told.
            log.info("the peer went while it was written to", extra={"method": self._method})
            return True
        await abort(self._context, refusal_of(error, self._method))


def _peer_went(error: BaseException) -> bool:
    """Whether all that failed are batches that gRPC began and could not finish. One it did not begin is our bug."""
    if isinstance(error, BaseExceptionGroup):
        return all(_peer_went(each) for each in error.exceptions)
    return isinstance(error, grpc.aio.InternalError) and "start_batch" not in str(error)


def refusal_of(error: Exception, method: str) -> Refusal:
    """What the caller of `method` is told: the refusal in `error`, or an INTERNAL one, found in the log by its id."""
    return first_refusal(error) or _internal(error, method)


def unary_unary(method: Unary[Request], request_type: type[Request]) -> "Handler":
    """A handler that answers once."""

    async def handle(data: bytes, context: Context) -> bytes:
        async with Guard(context, method.__qualname__):
            return serialise(await method(parse(request_type, data), context))
        raise AssertionError("guard let an exception vanish")

    return grpc.unary_unary_rpc_method_handler(handle)


def unary_stream(method: ServerStream[Request], request_type: type[Request]) -> "Handler":
    """A handler that answers in parts. However the call ends, the generator is closed before it has ended.

    Parts are written by us, not yielded to gRPC: gRPC drops a generator that it no longer needs, and its `finally`
    then runs whenever the garbage collector comes by.
    """

    async def handle(data: bytes, context: Context) -> None:
        async with Guard(context, method.__qualname__):
            async with aclosing(method(parse(request_type, data), context)) as parts:
                async for part in parts:
                    await context.write(serialise(part))

    return grpc.unary_stream_rpc_method_handler(handle)


def service(name: str, handlers: Mapping[str, "Handler"]) -> grpc.GenericRpcHandler:
    """The handlers as the service `name` (`stoker.v1.InferenceService`), for `server.add_generic_rpc_handlers`."""
    return grpc.method_handlers_generic_handler(name, dict(handlers))


def _internal(error: Exception, method: str) -> Refusal:
    """An error that nobody foresaw, in the log under an id and to the caller as that id."""
    error_id = uuid.uuid4().hex[:12]
    log.error("unexpected error", extra={"error_id": error_id, "method": method, "where": where(error)})
    return Refusal(Code.INTERNAL, f"internal error, in the server's log under error_id {error_id}", reason="INTERNAL")
