"""Which requests a server takes: with a key, those with a ticket; each client's ticket once."""

from collections.abc import Callable

from discovery.endpoint import Endpoint
from stoker.v1.generation_pb2 import Generation
from stoker.v1.ticket_pb2 import Claims
from stoker_common.clock import Clock
from stoker_common.refusal import Code, Refusal
from stoker_common.tickets import TicketKeys, check_claims


class TicketCheck:
    """A server's. `wall_clock` is Unix time in seconds: tickets end at a time that several machines agree on."""

    def __init__(self, keys: TicketKeys, endpoint: Callable[[], Endpoint], wall_clock: Clock) -> None:
        self._keys = keys
        self._endpoint = endpoint
        self._wall_clock = wall_clock
        # Reservations that came, until nobody could come with them again, by the order in which they came.
        self._used: dict[bytes, float] = {}

    def admit(self, ticket: bytes, generation: Generation) -> Claims | None:
        """What the request's ticket claims; None where there is none and none is asked for. Raises Refusal."""
        claims = self._keys.read(ticket)
        if claims is None:
            return None
        if not self._keys:
            # Nobody vouches for it: it tells whose reservation it is, and allows and forbids nothing.
            return claims
        endpoint, now_s = self._endpoint(), self._wall_clock()
        check_claims(claims, generation, endpoint.server, endpoint.epoch, now_s)
        if claims.reservation:
            self._forget(now_s)
            if claims.reservation in self._used:
                text = "the ticket was used before: ask the router for another"
                raise Refusal(Code.PERMISSION_DENIED, text, reason="TICKET_USED")
            self._used[claims.reservation] = claims.expires_at.ToNanoseconds() / 1e9 + 60.0
        return claims

    def _forget(self, now_s: float) -> None:
        for reservation, until_s in list(self._used.items()):
            if until_s > now_s:
                return
            del self._used[reservation]
