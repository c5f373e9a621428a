"""How much of an endpoint may be used so soon after its return. Pure.

A server that was just restarted or slow has cold caches, and a fleet's whole queue would move onto it at once.
"""

RAMP_S = 10.0
FIRST_SHARE = 0.1


def share(since_return_s: float) -> float:
    """The share of its places that may be taken, from a tenth to all within ten seconds (Envoy's slow start)."""
    return min(1.0, FIRST_SHARE + (1.0 - FIRST_SHARE) * max(0.0, since_return_s) / RAMP_S)
