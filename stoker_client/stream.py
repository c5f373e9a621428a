"""A streamed answer: an iterator over its parts that cancels the call when it is left."""

from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType

from stoker_client.results import Chunk


class Stream(AsyncIterator[Chunk]):
    """The parts of one answer, as they come.

    `async for` over it is enough: leaving the loop by `break` cancels the call as soon as nothing holds the stream.
    `async with client.stream(...) as stream` or `aclose()` cancel it at a moment of your choosing.
    """

    def __init__(self, parts: AsyncGenerator[Chunk, None]) -> None:
        self._parts = parts

    async def __anext__(self) -> Chunk:
        """The next part. Raises StokerError."""
        return await self._parts.__anext__()

    async def aclose(self) -> None:
        """Cancel what has not come yet. Idempotent."""
        await self._parts.aclose()

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
