"""What clients ask of the mock backends, and how a token says when it was made. Known to both ends, gRPC and HTTP."""

import time

MODEL = "bench"
# Of the simulated server that clients stream from themselves: the mocks take no tickets and tell no news.
MODEL_DIRECT = "bench-direct"
# A token of each stream every 20 ms: an 8B model on an H100 under load.
STEP_MS = 20.0
# The prompt says how the answer comes: a token a step, as fast as it goes, or all in one piece.
PACED, UNPACED, ONCE = "paced", "unpaced", "once"
ONCE_TOKENS = 16
# The case of short streams: what a request costs where its tokens cost the router nothing.
SHORT = "64-token streams"
# Every token's text is the time it was made: microseconds of the monotonic clock, which is one for all processes here.
STAMP_DIGITS = 16


def now_us() -> int:
    """The monotonic clock, in us."""
    return time.monotonic_ns() // 1000


def stamp() -> str:
    """A token's text."""
    return f"{now_us():0{STAMP_DIGITS}d}"
