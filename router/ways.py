"""How long the way to each zone takes, learned from answers: the router's wait less what the server says it took."""

from collections.abc import Mapping

# Weight of a new observation: settles within some ten requests.
_WEIGHT = 1 / 8


class Ways:
    """The way to each zone and back, in ms."""

    def __init__(self) -> None:
        self._ms: dict[str, float] = {}

    @property
    def ms(self) -> Mapping[str, float]:
        """By zone. A live view."""
        return self._ms

    def observe(self, zone: str, waited_ms: float, server_took_ms: float) -> None:
        """A first chunk came after `waited_ms`, of which the server says it took `server_took_ms`."""
        way_ms = max(0.0, waited_ms - server_took_ms)
        known = self._ms.get(zone)
        self._ms[zone] = way_ms if known is None else known + _WEIGHT * (way_ms - known)
