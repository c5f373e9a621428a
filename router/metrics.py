"""The router's metrics. Labels are bounded: models that servers listed, zones, servers, reasons from the code."""

from collections.abc import Iterator
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.calibration import TERMS
from router.ejection import Breakers, BreakerState
from router.fleet import Fleet
from router.flight import Flight
from router.ledger import NOTHING, Ledger
from stoker_common.clock import Clock
from stoker_common.metrics import ITL_BUCKETS_S, TTFT_BUCKETS_S

K = TypeVar("K", bound=tuple[str, ...])

# Right within a quarter is between 0.75 and 1.25.
TERM_KINDS = ("predicted", "actual", "off")
RATIO_BUCKETS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)


class RouterMetrics:
    """What the router counts itself, request by request: nothing here is done for each token."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "stoker_router_requests",
            "Requests by model, by the zone that answered last, and by outcome (ok, or a status in lower case).",
            ("model", "zone", "outcome"),
            registry=registry,
        )
        self.ttft = Histogram(
            "stoker_router_ttft_seconds",
            "From a request's arrival to its first token.",
            ("model", "zone"),
            buckets=TTFT_BUCKETS_S,
            registry=registry,
        )
        self.itl = Histogram(
            "stoker_router_itl_seconds",
            "Mean time between the tokens of a request.",
            ("model", "zone"),
            buckets=ITL_BUCKETS_S,
            registry=registry,
        )
        self.longest_gap = Histogram(
            "stoker_router_longest_gap_seconds",
            "Longest time between two tokens of a request.",
            ("model", "zone"),
            buckets=TTFT_BUCKETS_S,
            registry=registry,
        )
        self.prediction = Histogram(
            "stoker_router_ttft_predicted_ratio",
            "Time from an attempt's beginning to its first token, as a multiple of what the pick had expected.",
            ("zone",),
            buckets=RATIO_BUCKETS,
            registry=registry,
        )
        self.terms = Counter(
            "stoker_router_ttft_term_ms",
            "The time to the first token by term (ready, queue, prefill, rest), in ms: predicted, actual, and by how "
            "much the two were off, either way (off).",
            ("term", "kind"),
            registry=registry,
        )
        self._terms = {term: [self.terms.labels(term, kind) for kind in TERM_KINDS] for term in TERMS}
        self.tokens = Counter(
            "stoker_router_tokens", "Tokens relayed to callers.", ("model", "zone"), registry=registry
        )
        self.cached_tokens = Counter(
            "stoker_router_cached_tokens",
            "Tokens of prompts: all (prompt), expected in the server's cache (expected), found there (found), and by "
            "how much the two were off, either way (off).",
            ("model", "kind"),
            registry=registry,
        )
        self.picks = Counter(
            "stoker_router_picks",
            "Attempts by the picked server's zone and by the term that decided.",
            ("zone", "reason"),
            registry=registry,
        )
        self.failovers = Counter(
            "stoker_router_failovers",
            "Attempts that failed, by what failed and by what followed: a retry before the first part, or a resume.",
            ("fault", "then"),
            registry=registry,
        )
        self.retries_spared = Counter(
            "stoker_router_retries_spared",
            "Requests that were not tried again because the retry budget was spent.",
            registry=registry,
        )
        self.in_flight = Gauge(
            # Of several processes, the sum of those that live.
            "stoker_router_in_flight",
            "Requests in flight.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        # By their labels: finding one among its family's costs as much as counting with it, or more.
        self._requests: dict[tuple[str, str, str], Counter] = {}
        self._prompts: dict[str, _Prompts] = {}
        self._answers: dict[tuple[str, str], _Answers] = {}
        self._predictions: dict[str, Histogram] = {}
        self._picks: dict[tuple[str, str], Counter] = {}

    def observe(self, flight: Flight) -> None:
        """A request is over."""
        model, zone = flight.model, flight.tries[-1].zone if flight.tries else ""
        _child(self._requests, self.requests, (model, zone, flight.outcome)).inc()
        if flight.prompt_tokens:
            prompts = self._prompts.get(model)
            if prompts is None:
                prompts = self._prompts[model] = _Prompts(self.cached_tokens, model)
            prompts.observe(flight)
        if flight.waited_ms is not None and flight.predicted_ms > 0:
            ratio = self._predictions.get(zone)
            if ratio is None:
                ratio = self._predictions[zone] = self.prediction.labels(zone)
            ratio.observe(flight.waited_ms / flight.predicted_ms)
        if flight.sample is not None:
            for name, term in flight.sample.terms.items():
                predicted, actual, off = self._terms[name]
                # Between two machines' clocks `rest` may come out below 0, which a counter cannot take.
                predicted.inc(max(0.0, term.predicted_ms))
                actual.inc(max(0.0, term.actual_ms))
                off.inc(abs(term.predicted_ms - term.actual_ms))
        if flight.first_token_s is not None:
            answers = self._answers.get((model, zone))
            if answers is None:
                answers = self._answers[model, zone] = _Answers(self, model, zone)
            answers.observe(flight)

    def picked(self, zone: str, reason: str) -> None:
        """A server was chosen."""
        _child(self._picks, self.picks, (zone, reason)).inc()


class _Prompts:
    """What is counted of the prompts of one model."""

    __slots__ = ("_expected", "_found", "_off", "_prompt")

    def __init__(self, tokens: Counter, model: str) -> None:
        self._prompt, self._expected, self._found, self._off = (
            tokens.labels(model, kind) for kind in ("prompt", "expected", "found", "off")
        )

    def observe(self, flight: Flight) -> None:
        found, expected = flight.cached_tokens, flight.expected_cached_tokens
        self._prompt.inc(flight.prompt_tokens)
        if found or expected:
            self._expected.inc(expected)
            self._found.inc(found)
            self._off.inc(abs(found - expected))


class _Answers:
    """What is counted of the answers of one model in one zone."""

    __slots__ = ("_itl", "_longest_gap", "_tokens", "_ttft")

    def __init__(self, metrics: RouterMetrics, model: str, zone: str) -> None:
        self._ttft, self._itl, self._longest_gap = (
            family.labels(model, zone) for family in (metrics.ttft, metrics.itl, metrics.longest_gap)
        )
        self._tokens = metrics.tokens.labels(model, zone)

    def observe(self, flight: Flight) -> None:
        if (ttft_s := flight.ttft_s) is not None:
            self._ttft.observe(ttft_s)
            self._tokens.inc(flight.tokens)
        if (itl_s := flight.itl_s) is not None:
            self._itl.observe(itl_s)
            self._longest_gap.observe(flight.longest_gap_s)


def _child(known: dict[K, Counter], family: Counter, labels: K) -> Counter:
    child = known.get(labels)
    if child is None:
        child = known[labels] = family.labels(*labels)
    return child


class FleetCollector(Collector):
    """What the router knows of servers and catalog, read when Prometheus asks."""

    def __init__(self, fleet: Fleet, ledger: Ledger, breakers: Breakers, clock: Clock) -> None:
        self._fleet = fleet
        self._ledger = ledger
        self._breakers = breakers
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        age = GaugeMetricFamily(
            "stoker_router_catalog_age_seconds", "Since the zone's catalog was last confirmed.", labels=["zone"]
        )
        for zone in list(self._fleet.view.zones.values()):
            if zone.confirmed_at_s is not None:
                age.add_metric([zone.zone], self._clock() - zone.confirmed_at_s)
        yield age

        share = GaugeMetricFamily(
            "stoker_router_zone_share",
            "The share of its own load that the zone keeps: below 1 while servers of it are ejected.",
            labels=["zone"],
        )
        for name, kept in self._breakers.zone_shares.items():
            share.add_metric([name], kept)
        ejections = CounterMetricFamily(
            "stoker_router_ejections", "Servers taken out by experience, by cause.", labels=["zone", "cause"]
        )
        for (name, cause), count in list(self._breakers.ejections.items()):
            ejections.add_metric([name, cause.value], count)
        yield from (share, ejections)

        breaker = GaugeMetricFamily(
            "stoker_router_breaker_state",
            "1 for the state the server's breaker is in.",
            labels=["server", "zone", "state"],
        )
        in_flight = GaugeMetricFamily(
            "stoker_router_server_in_flight", "This router's requests on the server.", labels=["server", "zone"]
        )
        booked = GaugeMetricFamily(
            "stoker_router_server_booked_prompt_tokens",
            "Prompt tokens that this router sent to the server and that are not computed yet.",
            labels=["server", "zone"],
        )
        queue = GaugeMetricFamily(
            "stoker_router_server_queue",
            "Requests waiting in the server's engine, as last reported.",
            labels=["server", "zone"],
        )
        # Members are replaced as a whole by the event loop, while this runs in the exporter's thread.
        for key, member in self._fleet.snapshot.members.items():
            labels = [member.endpoint.server, member.endpoint.zone]
            account = self._ledger.accounts.get(key, NOTHING)
            state = self._breakers.state(key)
            for each in BreakerState:
                breaker.add_metric([*labels, each.value], float(each is state))
            in_flight.add_metric(labels, account.own_streams)
            booked.add_metric(labels, account.own_prompt_tokens)
            queue.add_metric(labels, account.load.waiting)
        yield from (breaker, in_flight, booked, queue)
