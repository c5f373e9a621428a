"""What is in flight on each endpoint: this router's own, known exactly, and the others', as far as reported.

A booking is made when a request is dispatched, before any report can know of it, so that a burst does not herd onto one
server. In-flight belongs to an epoch: a restarted server starts with none.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from discovery.endpoint import Load
from stoker_common.clock import Clock
from stoker_common.prompt_work import prompt_work

Key = tuple[str, str]  # server, epoch

# How much of the others' part is told from our own requests, where there are others and the endpoint does not speak for
# itself: half of it.
OWN_VIEW = 0.5
# Reports by which the number of others is told, and the most there can be.
_PEERS_REPORTS, _MOST_PEERS = 128, 64.0
# An endpoint that has a link, or just answered, is heard of at least so often: what the catalog says is older.
_HEARD_S = 2.0
# Reports over which what is typical is averaged.
_TYPICAL_REPORTS = 64
# With fewer streams of our own on an endpoint, on average, they tell nothing of the others'.
_FEW_STREAMS = 0.1


@dataclass(slots=True)
class Account:
    """One endpoint's occupancy. Read by scorers, changed only by the ledger.

    `own_*` are this router's requests; `others_*` what a report counted beyond them; `new_*` those of its own that were
    sent since. Prompt tokens are those expected to be computed: without the cached ones, until the first token; each
    counts for as many of a prompt's first ones as take as long, once the endpoint has told how much longer it takes.
    """

    own_streams: int = 0
    own_prompt_tokens: int = 0
    # With the cached ones, as servers count them.
    own_whole_tokens: int = 0
    new_streams: int = 0
    new_prompt_tokens: int = 0
    new_whole_tokens: int = 0
    # Whole prompts of all our streams there, and of those sent since the report.
    own_context_tokens: int = 0
    new_context_tokens: int = 0
    # Our requests without a first token yet, the foremost first, and when each is expected to have it.
    own_due_s: dict["Booking", float] = field(default_factory=dict)
    # How many streams of other routers there are for each of ours, over all endpoints.
    peers: float = 0.0
    others_streams: int = 0
    others_prompt_tokens: float = 0.0
    reported_at_s: float = 0.0
    # How far what was reported is trusted less than our own view.
    own_view: float = 0.0
    # When the endpoint itself said so last, and not the catalog.
    heard_at_s: float = -math.inf
    load: Load = field(default_factory=Load)

    @property
    def streams(self) -> float:
        """Streams running or waiting there, as far as can be told."""
        if not self.peers:
            return self.own_streams + self.others_streams
        return self.own_streams + self._others(self.others_streams, self.new_streams, self.own_streams)

    @property
    def context_tokens(self) -> float:
        """Tokens that the streams there attend to: those reported and what was sent since, by others in proportion."""
        told = self.load.context_tokens + (1 + self.peers) * self.new_context_tokens
        return told if told > self.own_context_tokens else self.own_context_tokens

    def _others(self, reported: float, new: int, own: float) -> float:
        """The others' part: what was reported, and in proportion what we sent since.

        Routers that see the same reports all choose the same server until the next one. Where endpoints speak for
        themselves, they take bids, which tells who came second (docs/adr/0161). What the catalog says is many
        seconds old: there, what we sent ourselves counts as much, which differs and so keeps routers apart (0086).
        """
        if not self.own_view:
            return reported + self.peers * new
        return (1 - self.own_view) * (reported + self.peers * new) + self.own_view * self.peers * own

    def waiting_prompt_tokens(self, now_s: float, prefill_tokens_per_second: float) -> float:
        """Prompt tokens to be computed before a request sent now: the others' have been worked on since the report."""
        others = self.others_prompt_tokens
        if others:
            others -= (now_s - self.reported_at_s) * prefill_tokens_per_second
            if others < 0.0:
                others = 0.0
        if not self.peers:
            return self.own_prompt_tokens + others
        return self.own_prompt_tokens + self._others(others, self.new_prompt_tokens, self.own_prompt_tokens)

    def due_ms(self, now_s: float) -> float:
        """Until the last of our requests there that wait for a first token is expected to have it; as much later as the
        foremost is late. For predictions: a pick that takes off the queue what is computed by now is too bold
        (docs/adr/0129)."""
        if not self.own_due_s:
            return 0.0
        foremost_s = next(iter(self.own_due_s.values()))
        return (max(self.own_due_s.values()) - min(now_s, foremost_s)) * 1e3

    def came(self, booking: "Booking", now_s: float) -> None:
        """Its first token came: those behind it are as late, or early, as it was."""
        due_s, behind = self.own_due_s, False
        late_s = now_s - due_s[booking]
        for each in due_s:
            if behind:
                due_s[each] += late_s
            behind = behind or each is booking


# Read where nothing is booked, never written.
NOTHING = Account()


@dataclass(frozen=True, slots=True)
class Typical:
    """What endpoints have measured of themselves, on average over their latest reports; 0 while none has."""

    prefill_tokens_per_second: float = 0.0
    itl_ms: float = 0.0
    attention_tokens: float = 0.0
    step_ms_per_context_token: float = 0.0

    def with_report(self, load: Load) -> "Typical":
        """With one more report."""
        return Typical(
            _towards(self.prefill_tokens_per_second, load.prefill_tokens_per_second),
            _towards(self.itl_ms, load.itl_ms),
            _towards(self.attention_tokens, load.attention_tokens),
            _towards(self.step_ms_per_context_token, load.step_ms_per_context_token),
        )


UNTOLD = Typical()


def _towards(known: float, told: float) -> float:
    if not told or not known:
        return told or known
    return known + (told - known) / _TYPICAL_REPORTS


class Booking:
    """One attempt's share of an account. `close` may be called any number of times."""

    __slots__ = ("_account", "_context", "_ledger", "_open", "_waiting_tokens", "_waits", "_whole_tokens")

    def __init__(
        self, ledger: "Ledger", account: Account, prompt_tokens: int, cached_tokens: int, due_s: float
    ) -> None:
        self._ledger = ledger
        self._account = account
        attention = account.load.attention_tokens or ledger.typical.attention_tokens
        self._waiting_tokens = round(prompt_work(prompt_tokens, cached_tokens, attention))
        self._whole_tokens = round(prompt_work(prompt_tokens + cached_tokens, 0, attention))
        self._open = self._waits = True
        account.own_due_s[self] = due_s
        self._context = prompt_tokens + cached_tokens
        account.own_context_tokens += self._context
        account.new_context_tokens += self._context
        account.own_streams += 1
        account.own_prompt_tokens += self._waiting_tokens
        account.own_whole_tokens += self._whole_tokens
        account.new_streams += 1
        account.new_prompt_tokens += self._waiting_tokens
        account.new_whole_tokens += self._whole_tokens

    def first_token(self) -> None:
        """It came: the prompt is computed."""
        if self._waits:
            self._account.came(self, self._ledger.now_s)
            self._waits_no_more()

    def close(self) -> None:
        """The attempt is over, however it ended."""
        if self._open:
            self._open = False
            if self._waits:
                self._waits_no_more()
            self._account.own_streams -= 1
            self._account.own_context_tokens -= self._context
            self._ledger.closed(self)

    def _waits_no_more(self) -> None:
        self._waits = False
        del self._account.own_due_s[self]
        self._account.own_prompt_tokens -= self._waiting_tokens
        self._account.own_whole_tokens -= self._whole_tokens


class Ledger:
    """The accounts of all endpoints."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._accounts: dict[Key, Account] = {}
        self._in_flight = 0
        # Streams of ours and of others on an endpoint, on average over reports.
        self._own = self._others = 0.0
        self._typical = Typical()
        self._on_room: Callable[[], None] = lambda: None

    def listen(self, on_room: Callable[[], None]) -> None:
        """`on_room` is told whenever an endpoint may have more room than a moment ago."""
        self._on_room = on_room

    @property
    def in_flight(self) -> int:
        """Attempts that are booked and not closed, over all endpoints."""
        return self._in_flight

    @property
    def accounts(self) -> Mapping[Key, Account]:
        """Accounts by server and epoch. A live view; read it and let go of it before the next await."""
        return self._accounts

    @property
    def typical(self) -> "Typical":
        """What endpoints have measured, on average: the best guess at one that has not."""
        return self._typical

    def attention_tokens(self, key: Key) -> float:
        """How far from its prompt's beginning a token takes twice as long there, or elsewhere; 0 while nobody knows."""
        return self._accounts.get(key, NOTHING).load.attention_tokens or self._typical.attention_tokens

    @property
    def now_s(self) -> float:
        """The clock's reading."""
        return self._clock()

    def book(self, key: Key, prompt_tokens: int, cached_tokens: int = 0, expected_ms: float = 0.0) -> Booking:
        """Book an attempt that will compute `prompt_tokens` and find `cached_tokens` in the cache; its first token is
        expected after `expected_ms`."""
        self._in_flight += 1
        account = self._accounts.setdefault(key, Account())
        return Booking(self, account, prompt_tokens, cached_tokens, self._clock() + expected_ms / 1e3)

    def closed(self, _booking: Booking) -> None:
        """For bookings: one is over."""
        self._in_flight -= 1
        self._on_room()

    def report(self, key: Key, load: Load) -> None:
        """An endpoint reported its load just now. What it counts beyond our own is the others'."""
        account = self._accounts.setdefault(key, Account())
        account.heard_at_s = self._clock()
        account.own_view = 0.0
        self._take(account, load)

    def published(self, key: Key, load: Load) -> None:
        """The catalog says so of an endpoint: rounded, and old. Of one that speaks for itself it says nothing new."""
        account = self._accounts.setdefault(key, Account())
        if self._clock() >= account.heard_at_s + _HEARD_S:
            account.own_view = OWN_VIEW
            self._take(account, load)

    def _take(self, account: Account, load: Load) -> None:
        account.load = load
        self._typical = self._typical.with_report(load)
        account.reported_at_s = self._clock()
        account.others_streams = max(0, load.running + load.waiting - account.own_streams)
        account.others_prompt_tokens = 0.0
        if account.others_streams:
            cached = load.waiting_cached_prompt_tokens
            own = account.own_whole_tokens if cached is None else account.own_prompt_tokens
            account.others_prompt_tokens = max(0.0, load.waiting_prompt_tokens - (cached or 0) - own)
        account.new_streams = account.new_prompt_tokens = account.new_whole_tokens = account.new_context_tokens = 0
        self._others += (account.others_streams - self._others) / _PEERS_REPORTS
        self._own += (account.own_streams - self._own) / _PEERS_REPORTS
        account.peers = min(_MOST_PEERS, self._others / self._own) if self._own > _FEW_STREAMS else 0.0
        self._on_room()

    def keep(self, keys: Iterable[Key]) -> None:
        """Forget accounts of endpoints that are gone and on which nothing of ours runs."""
        kept = set(keys)
        gone = [key for key, account in self._accounts.items() if key not in kept and account.own_streams == 0]
        for key in gone:
            del self._accounts[key]
