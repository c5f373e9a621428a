"""What all connections of a server may hold together, and each one's share of it."""


class Pool:
    """Bytes of one kind. Counted, so that neither taking nor asking looks at other connections."""

    __slots__ = ("free_bytes", "most_bytes")

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.free_bytes = most_bytes

    def share(self, most_bytes: int) -> "Share":
        """A connection's, which may have `most_bytes` at most, whatever is free."""
        return Share(self, most_bytes)


class Share:
    """One connection's part of a pool.

    It may grow while it has no more than what is left free then ("Dynamic queue length thresholds for shared-memory
    packet switches", Choudhury and Hahne, 1998): n connections that take all they can get have 1/(n + 1) of the pool
    each, and whoever has little finds as much free.
    """

    __slots__ = ("_most_bytes", "_pool", "held_bytes")

    def __init__(self, pool: Pool, most_bytes: int) -> None:
        self._pool = pool
        self._most_bytes = most_bytes
        self.held_bytes = 0

    def fits(self, more_bytes: int = 0) -> bool:
        """Whether it may have so many bytes more; with none, whether it may have what it has."""
        held = self.held_bytes + more_bytes
        return held <= self._most_bytes and held <= self._pool.free_bytes - more_bytes

    def add(self, size: int) -> None:
        """So many bytes more, or less, are held, whether they fit or not."""
        self.held_bytes += size
        self._pool.free_bytes -= size

    def release(self) -> None:
        """Nothing is held any more."""
        self.add(-self.held_bytes)

    def why(self, what: str) -> str:
        """For whom it does not fit: whose limit that is, of `what`."""
        if self.held_bytes > self._pool.free_bytes and self.held_bytes <= self._most_bytes:
            used = self._pool.most_bytes - self._pool.free_bytes
            return f"{used} bytes of {what} of all connections wait, {self.held_bytes} of them this one's"
        return f"{self.held_bytes} bytes of {what} of this connection wait"
