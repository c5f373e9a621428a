"""What a run is made of: requests, servers, and what happens to the servers on the way."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.routing.job import Job
from bench.routing.speeds import Speeds


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """A server. `models`: all that it can serve; the first `hot` of them are in its accelerator's memory."""

    name: str
    zone: str
    speeds: Speeds
    models: tuple[str, ...] = ("model",)
    hot: int = 1


@dataclass(frozen=True, slots=True)
class Loss:
    """All servers of a zone are gone from then on."""

    at_s: float
    zone: str


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in order of arrival, for a fleet whose routers are in the first server's zone."""

    name: str
    jobs: Sequence[Job]
    servers: tuple[ServerSpec, ...]
    loss: Loss | None = None

    @property
    def home(self) -> str:
        """The routers' zone."""
        return self.servers[0].zone

    @property
    def ideal_cached_share(self) -> float:
        """Of all prompt tokens, those that one cache without a limit would have."""
        known: set[int] = set()
        cached = total = 0
        for job in self.jobs:
            hits = 0
            for block in job.chain:
                if block not in known:
                    break
                hits += 1
            # The last token is always computed.
            cached += min(hits * 512, (job.prompt_tokens - 1) // 512 * 512)
            total += job.prompt_tokens
            known.update(job.chain)
            known.update(job.answer_chain)
        return cached / total if total else 0.0


def fleet(speeds: Speeds, count: int = 8, zones: Sequence[str] = ("a",)) -> tuple[ServerSpec, ...]:
    """So many servers alike, dealt out to the zones."""
    return tuple(ServerSpec(f"{zones[i % len(zones)]}-{i}", zones[i % len(zones)], speeds) for i in range(count))
