"""Tickets: a router's word, signed by the mesh's key, that it picked a server for a request. Pure."""

import hashlib
import hmac
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from stoker.v1 import generation_pb2
from stoker.v1.ticket_pb2 import Claims, Ticket
from stoker_common.adapters import asked_model
from stoker_common.refusal import Code, Refusal

# gRPC metadata with this ending carries bytes.
METADATA_KEY = "stoker-ticket-bin"
SHORTEST_KEY = 32
# So that no other message that the key may ever sign is taken for one of these.
_CONTEXT = b"stoker.v1.Claims\0"
# Clocks of two machines differ, by less than this where anybody looks after them.
_SKEW_S = 5.0


@dataclass(frozen=True, slots=True)
class TicketKeys:
    """The mesh's keys: the first one signs, each is accepted, so that a key can be changed while all runs."""

    keys: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def parse(cls, text: str) -> "TicketKeys":
        """From a setting: keys separated by commas, the newest first. Raises ValueError for one that is too short."""
        keys = tuple(each.strip().encode() for each in text.split(",") if each.strip())
        if any(len(key) < SHORTEST_KEY for key in keys):
            raise ValueError(f"each key must have at least {SHORTEST_KEY} characters: try `openssl rand -hex 32`")
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self.keys)

    def ticket(self, claims: Claims) -> bytes:
        """The claims as a serialised ticket, unsigned where there is no key."""
        said = claims.SerializeToString(deterministic=True)
        mac = _mac(self.keys[0], said) if self.keys else b""
        return Ticket(claims=said, mac=mac).SerializeToString()

    def read(self, data: bytes) -> Claims | None:
        """What a ticket claims, None without one. Raises Refusal (UNAUTHENTICATED) where it is not signed by a key of
        ours; without keys, all is believed."""
        if not data:
            if self.keys:
                text = "this server takes requests that a router of its mesh sent or reserved: ask a router"
                raise Refusal(Code.UNAUTHENTICATED, text, reason="TICKET_MISSING")
            return None
        try:
            ticket = Ticket.FromString(data)
            claims = Claims.FromString(ticket.claims)
        except DecodeError as error:
            raise _invalid("cannot be parsed") from error
        if self.keys and not any(hmac.compare_digest(_mac(key, ticket.claims), ticket.mac) for key in self.keys):
            raise _invalid("is not signed by a key of this server's: do routers and servers have the same ticket_key?")
        return claims


def check_claims(
    claims: Claims, generation: generation_pb2.Generation, server: str, epoch: str, now_unix_s: float
) -> None:
    """Whether `claims` let `generation` in at this server now. Raises Refusal: UNAUTHENTICATED for a ticket that has
    ended, PERMISSION_DENIED for one of another server or request."""
    if (claims.server, claims.epoch) != (server, epoch):
        raise _denied("TICKET_OTHER_SERVER", f"is for server {claims.server} in another life, or for another server")
    if claims.HasField("expires_at") and now_unix_s > claims.expires_at.ToNanoseconds() / 1e9 + _SKEW_S:
        text = "the ticket has ended: begin sooner after Route, and see that the machines' clocks agree"
        raise Refusal(Code.UNAUTHENTICATED, text, reason="TICKET_EXPIRED")
    for name, claimed, asked in (
        ("model", claims.model, asked_model(generation)),
        ("request_id", claims.request_id, generation.request_id),
        ("tenant", claims.tenant, generation.tenant.id),
    ):
        if claimed != asked:
            raise _denied("TICKET_OTHER_REQUEST", f"is for another {name}")
    if claims.max_output_tokens and not 0 < output_tokens(generation) <= claims.max_output_tokens:
        raise _denied("TICKET_OTHER_REQUEST", f"allows {claims.max_output_tokens} tokens of output")
    if claims.max_request_bytes and generation.ByteSize() > claims.max_request_bytes:
        raise _denied("TICKET_OTHER_REQUEST", f"allows a request of {claims.max_request_bytes} bytes")


def output_tokens(generation: generation_pb2.Generation) -> int:
    """The most tokens that the request asks for, over all outputs; 0 without a limit."""
    sampling = generation.sampling
    return sampling.max_tokens * (sampling.n if sampling.HasField("n") else 1)


def _mac(key: bytes, claims: bytes) -> bytes:
    return hmac.new(key, _CONTEXT + claims, hashlib.sha256).digest()


def _invalid(why: str) -> Refusal:
    return Refusal(Code.UNAUTHENTICATED, f"the ticket {why}", reason="TICKET_INVALID")


def _denied(reason: str, why: str) -> Refusal:
    return Refusal(Code.PERMISSION_DENIED, f"the ticket {why}", reason=reason)
