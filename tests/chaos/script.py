"""What the clients ask: drawn from a seed, so that history and expectation speak of the same streams. Pure."""

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from stoker.v1 import generation_pb2

MODEL = "sim-model"
_WORDS = "coal water steam fire valve gauge boiler piston shovel ash draught tender rail whistle".split()


@dataclass(frozen=True, slots=True)
class Load:
    """How much one client asks. Streams start within `spread_s`, a tenth of them in as much time again.

    `deadline_s` is each stream's: past the longest one and the longest fault; a stream that takes longer has failed.
    """

    streams: int = 100
    shortest_tokens: int = 40
    longest_tokens: int = 60
    spread_s: float = 3.0
    deadline_s: float = 60.0

    def to_json(self) -> str:
        """For a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Load":
        """What `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class Ask:
    """One stream."""

    name: str
    start_s: float
    prompt: str
    max_tokens: int
    seed: int | None

    def generation(self) -> generation_pb2.Generation:
        """As it is sent."""
        sampling = generation_pb2.Sampling(max_tokens=self.max_tokens)
        if self.seed is not None:
            sampling.seed, sampling.temperature = self.seed, 0.8
        return generation_pb2.Generation(model=MODEL, text=self.prompt, sampling=sampling)


def script(seed: str, client: str, load: Load) -> tuple[Ask, ...]:
    """Everything that one client asks in a trial."""
    rng = random.Random(f"{seed} {client}")
    return tuple(_asks(rng, client, load))


def _asks(rng: random.Random, client: str, load: Load) -> Iterator[Ask]:
    for number in range(load.streams):
        late = number % 10 == 9
        yield Ask(
            name=f"{client}-{number}",
            start_s=rng.uniform(0.0, load.spread_s) + (load.spread_s if late else 0.0),
            prompt=f"{client} {number} " + " ".join(rng.choices(_WORDS, k=rng.randint(3, 40))),
            max_tokens=rng.randint(load.shortest_tokens, load.longest_tokens),
            seed=rng.getrandbits(31) if number % 3 == 0 else None,
        )
