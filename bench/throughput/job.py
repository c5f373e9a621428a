"""What a process of the load generator is told to do, and what it tells when it has done it. As JSON between them."""

import json
from dataclasses import asdict, dataclass
from typing import Literal, Self

# The SDK with a link, plain stubs with a call for each stream, the SDK in direct mode.
Way = Literal["link", "calls", "direct"]
WAYS: tuple[Way, ...] = ("link", "calls", "direct")


@dataclass(frozen=True, slots=True)
class Line:
    """What goes to a process and comes from it."""

    def line(self) -> str:
        """To be read by `parse`."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, line: str) -> Self:
        """What a line says. Raises TypeError if it is another one's."""
        return cls(**json.loads(line))


@dataclass(frozen=True, slots=True)
class Job(Line):
    """Streams to one address. Prompts are `prompt_tokens` random ids below `vocabulary`, or `text` and a number."""

    address: str
    way: Way
    model: str
    streams: int
    tokens: int
    seed: int
    prompt_tokens: int = 0
    vocabulary: int = 0
    text: str = ""
    streams_per_channel: int = 8


@dataclass(frozen=True, slots=True)
class Span(Line):
    """From when to when tokens count, by the monotonic clock, in s; `to_s` None: until each stream has ended once."""

    from_s: float
    to_s: float | None


@dataclass(frozen=True, slots=True)
class Done(Line):
    """What came in the span, and `last_s`, when the last of it did. `cores` is what this process used."""

    tokens: int
    last_s: float
    ttft_ms: list[float]
    cores: float
    lag_p99_ms: float
