"""How a request reaches an endpoint: the interface behind which calls, and later links, sit."""

from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from typing import Protocol

from discovery.endpoint import Endpoint
from router.ledger import Key
from stoker.v1 import generation_pb2, inference_pb2

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an answer: as it came, to be passed on, and parsed, to be accounted for."""

    data: bytes
    message: inference_pb2.GenerateStreamResponse


class Transport(Protocol):
    """The way to endpoints. One for all of them."""

    def attempt(
        self, endpoint: Endpoint, generation: generation_pb2.Generation, timeout_s: float | None, metadata: Metadata
    ) -> AsyncGenerator[Part, None]:
        """Generate there. Closing the generator aborts the generation on the endpoint.

        Raises EndpointError, whose fault says what the failure tells of the endpoint.
        """

    async def answers(self, endpoint: Endpoint, timeout_s: float) -> bool:
        """Whether the endpoint answers now and calls itself healthy."""

    def keep(self, keys: Iterable[Key]) -> None:
        """Close connections to endpoints that are none of these, once nothing runs on them."""

    async def close(self) -> None:
        """Close all connections."""
