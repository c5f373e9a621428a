"""What each session left in servers' caches, as far as this router saw: for servers that do not announce it."""

from collections import OrderedDict

Place = tuple[str, str]  # server, epoch: a restarted server's cache is empty


class Sessions:
    """How many of its tokens each server holds, for the most recent sessions: a flood of them evicts the oldest."""

    def __init__(self, capacity: int, places_per_session: int = 4) -> None:
        self._capacity = capacity
        self._places_per_session = places_per_session
        self._places: OrderedDict[int, OrderedDict[Place, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def held(self, session: int) -> dict[Place, int]:
        """Tokens of the session by server and epoch. Empty if nothing is known."""
        return dict(self._places.get(session, {})) if session else {}

    def left(self, session: int, place: Place, tokens: int) -> None:
        """The session's conversation of `tokens` is now in the cache at `place`."""
        if not session:
            return
        places = self._places.setdefault(session, OrderedDict())
        self._places.move_to_end(session)
        places[place] = tokens
        places.move_to_end(place)
        if len(places) > self._places_per_session:
            places.popitem(last=False)
        if len(self._places) > self._capacity:
            self._places.popitem(last=False)

    def correct(self, session: int, place: Place, tokens: int) -> None:
        """The server had only `tokens` of the session cached: believe it."""
        places = self._places.get(session)
        if places is not None and place in places:
            places[place] = tokens
