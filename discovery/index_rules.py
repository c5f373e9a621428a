"""Consul's rules for the index of blocking queries (its API documentation, "Blocking Queries"). Pure."""


def next_index(asked: int, answered: int) -> int:
    """The index to ask with next, 0 for a query that does not wait.

    One that went backwards (an agent restarted, a snapshot was restored) starts anew. One below 1 would make every
    query return at once, so it counts as 1.
    """
    answered = max(answered, 1)
    return 0 if answered < asked else answered
