"""How a request reaches an endpoint: the interface behind which calls, and later links, sit."""

from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from discovery.endpoint import Endpoint, Load, Residency
from router.interrupt import Interrupt
from stoker.v1 import endpoint_pb2, generation_pb2, inference_pb2, model_pb2, worker_link_pb2
from stoker_common.link.state import LinkState
from stoker_common.link.stream import Relay
from stoker_common.parts import only_deltas

Metadata = tuple[tuple[str, str | bytes], ...]
OnLoad = Callable[[Endpoint, Load], None]
OnDirect = Callable[[Endpoint, worker_link_pb2.DirectStream], None]
OnLink = Callable[[Endpoint, LinkState], None]
# What an endpoint has cached; False if something it said before was missed.
OnDigest = Callable[[Endpoint, worker_link_pb2.CacheDigest], bool]


class Part:
    """A part of an answer: as it came, to be passed on, and parsed where somebody looks into it.

    `plain`: it is output and nothing else, of which `tokens` tokens, and need not be looked into. Most parts are.
    """

    __slots__ = ("_message", "data", "plain", "tokens")

    def __init__(
        self, data: bytes, message: inference_pb2.GenerateStreamResponse | None = None, *, tokens: int = 0
    ) -> None:
        self.data = data
        self.tokens = tokens
        self.plain = message is None and only_deltas(data)
        self._message = message

    @property
    def message(self) -> inference_pb2.GenerateStreamResponse:
        """What it says."""
        if self._message is None:
            self._message = inference_pb2.GenerateStreamResponse.FromString(self.data)
        return self._message


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one try asks of an endpoint. `timeout_s`: what is left of the caller's deadline.

    `interrupt` ends it from outside. While the next part is waited for, output may go to `relay` instead, in order; a
    transport that does not count tokens as they come leaves it alone.
    """

    endpoint: Endpoint
    generation: generation_pb2.Generation
    timeout_s: float | None = None
    metadata: Metadata = ()
    interrupt: Interrupt = field(default_factory=Interrupt)
    relay: Relay | None = None


class Transport(Protocol):
    """The way to endpoints. One for all of them."""

    def attempt(self, attempt: Attempt) -> AsyncGenerator[Part, None]:
        """Generate. Closing the generator aborts the generation on the endpoint, and so does the attempt's interrupt.

        Raises EndpointError, whose fault says what the failure tells of the endpoint.
        """

    async def drain(self, endpoint: Endpoint, grace_s: float | None, timeout_s: float) -> int:
        """Ask the endpoint to leave; returns what it had in flight. Raises Refusal."""

    def ready(self, endpoint: Endpoint, model: str) -> AsyncGenerator[model_pb2.ModelProgress, None]:
        """Have the endpoint make a model hot; how far it is, until it is. Raises Refusal.

        Closing the generator stops listening; the endpoint goes on.
        """

    async def put_away(
        self, endpoint: Endpoint, model: str, to: Residency, grace_s: float | None
    ) -> endpoint_pb2.Model:
        """Have the endpoint move a model out of the way, to ASLEEP or STAGED; where it is then. Raises Refusal."""

    async def answers(self, endpoint: Endpoint, timeout_s: float) -> bool:
        """Whether the endpoint answers now and calls itself healthy."""

    def keep(self, endpoints: Iterable[Endpoint]) -> None:
        """These are all the endpoints there are: let go of others once nothing runs on them."""

    async def reached(self, within_s: float) -> None:
        """Wait until the endpoints that this router serves first have told their load, or cannot, or for so long."""

    async def run(self) -> None:
        """Whatever the transport does in the background, until cancelled."""

    def listen(self, on_load: "OnLoad", on_link: "OnLink", on_digest: "OnDigest") -> None:
        """Whom to tell of loads that endpoints report, of links that come and go, and of what is cached."""

    def hear(self, on_direct: "OnDirect") -> None:
        """Whom to tell what endpoints say of streams that clients have there themselves."""

    def want(self, endpoint: Endpoint) -> None:
        """A client will have a stream there itself: be ready to hear of it."""

    def move(self, endpoint: Endpoint, reservation: bytes, why: str) -> None:
        """Have a client's own stream on the endpoint end, so that it goes on elsewhere, if the endpoint can be told."""

    async def close(self) -> None:
        """Close all connections."""
