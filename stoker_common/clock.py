"""What a clock is: passed in, so that tests can hold it."""

from collections.abc import Callable

# Monotonic seconds from an arbitrary start, such as `time.monotonic`.
Clock = Callable[[], float]
