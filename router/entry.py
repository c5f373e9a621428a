"""Where requests come in, by call or by link: checked, given an id, their deadline on this process's clock."""

import uuid
from collections.abc import AsyncGenerator

from opentelemetry.context import Context

from router.router import Router
from stoker.v1 import generation_pb2
from stoker_common.clock import Clock
from stoker_common.validate import check_generation


class Entry:
    """The router as its services see it."""

    def __init__(self, router: Router, clock: Clock) -> None:
        self._router = router
        self._clock = clock

    def generate(
        self, generation: generation_pb2.Generation, remaining_s: float | None, parent: Context
    ) -> AsyncGenerator[bytes, None]:
        """The answer's serialised parts. `remaining_s` is what the caller's deadline leaves, None without one.

        Raises Refusal, at once or while it is read. Closing it cancels the request.
        """
        check_generation(generation)
        if not generation.request_id:
            generation.request_id = uuid.uuid4().hex
        deadline_s = None if remaining_s is None else self._clock() + remaining_s
        return self._router.generate(generation, deadline_s, parent)
