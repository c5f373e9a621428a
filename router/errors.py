"""What can go wrong with one attempt on one endpoint."""

from enum import Enum

from discovery.endpoint import Endpoint
from stoker_common.bid import OUTBID
from stoker_common.refusal import Code, Refusal

# What a status says of its endpoint. What is not here is the server's fault.
BUSY = frozenset({Code.RESOURCE_EXHAUSTED, Code.NOT_FOUND})
# The server is well, and goes or has no such model ready.
BUSY_REASONS = frozenset({"SERVER_DRAINING", "MODEL_LEAVING", "MODEL_FAILED"})
_CALLER = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.UNIMPLEMENTED,
        Code.DEADLINE_EXCEEDED,
        Code.UNAUTHENTICATED,
        Code.PERMISSION_DENIED,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.ALREADY_EXISTS,
    }
)


class Fault(Enum):
    """What a failed attempt says about its endpoint, and so what the router does next."""

    # The connection is gone or was never made: nothing reached the engine, or nothing will come back.
    LINK = "link"
    # The server answered, wrongly: it counts against it.
    SERVER = "server"
    # The server is well and cannot take this request now: full, draining, without the model.
    BUSY = "busy"
    # The server has more to do than the router knew when it picked it, and has told what: another pick is better.
    OUTBID = "outbid"
    # The stream did not fail: its server is emptied, by an operator or since it crawls, and it goes on elsewhere.
    MOVED = "moved"
    # The caller's own: a mistake in the request, a deadline, a cancel. No endpoint would do better.
    CALLER = "caller"

    @property
    def retryable(self) -> bool:
        """Whether another endpoint may do better."""
        return self is not Fault.CALLER


class EndpointError(Exception):
    """An attempt failed. `refusal` is what the caller hears if nothing better can be done."""

    def __init__(self, fault: Fault, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.fault = fault
        self.refusal = refusal

    @property
    def suspicion(self) -> bool:
        """Whether the endpoint may be well all the same: its link broke, or its engine was only slow."""
        return self.fault is Fault.LINK or self.refusal.reason == "SERVER_STUCK"


def endpoint_error(refusal: Refusal, endpoint: Endpoint, *, cut: bool) -> EndpointError:
    """What an attempt that ended with `refusal` says of its endpoint. `cut`: whether it cannot be reached any more."""
    if refusal.code in _CALLER and not refusal.reason.startswith("TICKET_"):
        return EndpointError(Fault.CALLER, refusal)
    if refusal.reason == OUTBID:
        return EndpointError(Fault.OUTBID, refusal)
    if refusal.code in BUSY or refusal.reason in BUSY_REASONS:
        return EndpointError(Fault.BUSY, refusal)
    where = f"server {endpoint.server} at {endpoint.address} in {endpoint.zone}"
    told = Refusal(
        Code.UNAVAILABLE,
        f"{where} failed: {refusal.code.name}: {refusal.message}",
        reason="SERVER_FAILED",
        retry_after_s=refusal.retry_after_s,
    )
    return EndpointError(Fault.LINK if refusal.code is Code.UNAVAILABLE and cut else Fault.SERVER, told)
