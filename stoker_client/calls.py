"""Calls to whichever router answers first: what asks and orders, beside answers to prompts."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar

import grpc.aio
from opentelemetry import trace

from stoker_client.addresses import Addresses, unreachable, worth_another_address
from stoker_client.call import Deadline, Metadata, raising_stoker_error
from stoker_client.errors import StokerError
from stoker_common import tracing

Request = TypeVar("Request")
Response = TypeVar("Response")

# What a stub has under a method's name, on a channel.
OneAnswer = Callable[[grpc.aio.Channel], grpc.aio.UnaryUnaryMultiCallable[Request, Response]]
ManyAnswers = Callable[[grpc.aio.Channel], grpc.aio.UnaryStreamMultiCallable[Request, Response]]


class Calls:
    """A client's calls. `timeout_s` bounds those that do not say otherwise; None: no bound."""

    def __init__(self, addresses: Addresses, timeout_s: float | None, tracer: trace.Tracer) -> None:
        self._addresses = addresses
        self._timeout_s = timeout_s
        self._tracer = tracer

    async def one(
        self, name: str, method: OneAnswer[Request, Response], request: Request, timeout_s: float | None = None
    ) -> Response:
        """The answer of the first address that gives one. Raises StokerError."""
        async with aclosing(self._answers(name, method, _only, request, timeout_s)) as answers:
            answer: Response = await anext(answers)
            return answer

    def many(
        self, name: str, method: ManyAnswers[Request, Response], request: Request, timeout_s: float | None = None
    ) -> AsyncGenerator[Response, None]:
        """The answers of the first address that gives all of them: if one is lost in the middle, the next begins anew.
        Raises StokerError."""
        return self._answers(name, method, aiter, request, timeout_s)

    async def _answers(
        self,
        name: str,
        method: Callable[[grpc.aio.Channel], Callable[..., Any]],
        read: Callable[[Any], AsyncIterator[Response]],
        request: Request,
        timeout_s: float | None,
    ) -> AsyncGenerator[Response, None]:
        deadline = self.deadline(timeout_s)
        failed: StokerError | None = None
        with self.traced(name) as metadata:
            async with aclosing(self._addresses.connected(deadline.left_s())) as routers:
                async for router in routers:
                    call = method(router.channel)(request, metadata=metadata, timeout=deadline.left_s())
                    try:
                        with router.used(), raising_stoker_error():
                            async for response in read(call):
                                yield response
                            return
                    except StokerError as error:
                        failed = error
                        if not worth_another_address(error):
                            raise
                        self._addresses.lost(router.address)
                    finally:
                        call.cancel()
            raise failed or unreachable()

    def deadline(self, timeout_s: float | None) -> Deadline:
        """A call's: what it says, else the client's."""
        return Deadline(self._timeout_s if timeout_s is None else timeout_s)

    @contextmanager
    def traced(self, name: str) -> Iterator[Metadata]:
        """A span around a call, and the metadata that carries it on. The span is current only while the metadata is
        made: a generator's body may be closed from another context."""
        span = self._tracer.start_span(f"stoker.{name}", kind=trace.SpanKind.CLIENT)
        try:
            with trace.use_span(span):
                metadata = tracing.inject()
            yield metadata
        except StokerError as error:
            span.set_status(trace.Status(trace.StatusCode.ERROR, error.code.name))
            raise
        finally:
            span.end()


async def _only(call: Awaitable[Response]) -> AsyncIterator[Response]:
    """A single answer, as one of many."""
    yield await call
