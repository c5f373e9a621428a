"""What the policies need to know of a request: its model, its sizes, what of it may be cached. Never its text."""

from dataclasses import dataclass

from stoker_common.prefix import NONE, Prefix


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the policies see it. Sizes are in tokens; the prompt's is exact for ids, else an estimate."""

    request_id: str
    model: str
    prompt_tokens: int
    expected_output_tokens: int
    # A hash of its session; 0 without one. `hard`: it waits for the session's server.
    session: int = 0
    hard: bool = False
    # Its prompt's chain of blocks, and how many of the prompt's tokens lie behind it: what was generated before.
    prefix: Prefix = NONE
    resumed_tokens: int = 0
    # Whether it may be served from a cache.
    reads_cache: bool = True
