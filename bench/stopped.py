"""Runs that are ended from outside and keep what they have measured."""

import asyncio
import signal
from collections.abc import Coroutine


def until_stopped(measuring: Coroutine[None, None, None], what: str) -> None:
    """Run it to its end, or to SIGINT: then exit, saying that the rows of all of `what` that was done are kept."""
    # A shell's background jobs ignore it; `timeout -s INT` is to end this one in order.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        asyncio.run(measuring)
    except KeyboardInterrupt:
        raise SystemExit(f"stopped before all {what} were done; the rows of those that were are kept") from None
