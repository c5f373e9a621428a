"""What the policies need to know of a request: its model, its sizes, its session. Never its text."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the policies see it. Sizes are in tokens; the prompt's is exact for ids, else an estimate."""

    request_id: str
    model: str
    prompt_tokens: int
    expected_output_tokens: int
    session: str = ""
