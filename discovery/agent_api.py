"""What discovery asks of a Consul agent: the one interface behind which Consul and the in-memory twin sit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from discovery.codec import ServiceRecord


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a catalog query, with the headers that say how far to believe it.

    `rows` is JSON as it came, not yet looked at. `last_contact_ms`: how long ago the answering server heard its leader.
    """

    index: int
    rows: object
    known_leader: bool
    last_contact_ms: int


@dataclass(frozen=True, slots=True)
class TtlCheck:
    """A check that turns critical unless passed every `ttl_s`; its service goes after `deregister_after_s` critical."""

    ttl_s: float
    deregister_after_s: float


class AgentApi(Protocol):
    """A zone's Consul agent. Every method raises CatalogError, and only that, when it did not get what it asked for."""

    async def services(self, service: str, zone: str, index: int, wait_s: float) -> Answer:
        """Instances of `service` in `zone` with checks; waits up to `wait_s` for a change after `index` (0: not)."""

    async def zones(self) -> Sequence[str]:
        """The datacenters that the agent knows, its own among them."""

    async def register(self, service: str, record: ServiceRecord, check: TtlCheck, *, replace_checks: bool) -> None:
        """Write the record. A check that is there keeps its status, and its TTL starts anew. A new one is
        passing: only a server that answers registers.

        `replace_checks` removes all other checks of the service, and with them its maintenance mode.
        """

    async def deregister(self, service_id: str) -> None:
        """Remove the record; one that is not there is no error."""

    async def mark(self, service_id: str, *, passing: bool, output: str) -> None:
        """Set the TTL check's status and output; no Raft write unless the status changes."""

    async def epoch(self, service_id: str) -> str | None:
        """The `epoch` in the Meta of the agent's own record of the service; None if it has none."""

    async def in_maintenance(self, service_id: str) -> bool:
        """Whether an operator has put the service into maintenance mode at this agent."""
