"""What can go wrong with one attempt on one endpoint."""

from enum import Enum

from stoker_common.refusal import Refusal


class Fault(Enum):
    """What a failed attempt says about its endpoint, and so what the router does next."""

    # The connection is gone or was never made: nothing reached the engine, or nothing will come back.
    LINK = "link"
    # The server answered, wrongly: it counts against it.
    SERVER = "server"
    # The server is well and cannot take this request now: full, draining, without the model.
    BUSY = "busy"
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
