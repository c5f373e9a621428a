"""Streams that crawl: judged by what is usual there and by the others, never by a full batch or a common trouble."""

from dataclasses import dataclass, field

from router.pace import Paces

EVERY_S = 0.5


@dataclass
class Fleet:
    """Servers whose streams run at given intervals, looked at twice a second."""

    interval_s: dict[str, float]
    streams: dict[str, int] = field(default_factory=dict)
    unfair: set[str] = field(default_factory=set)
    told_s: float = 0.0
    paces: Paces[str] = field(default_factory=Paces)
    now_s: float = 0.0
    _owed: dict[str, float] = field(default_factory=dict)

    def run(self, seconds: float) -> dict[str, float]:
        """When each server was first called slow, in seconds from now."""
        began_s = self.now_s
        slow: dict[str, float] = {}
        while self.now_s < began_s + seconds:
            self.now_s += EVERY_S
            for server, interval_s in self.interval_s.items():
                streams = self.streams.get(server, 10)
                owed = self._owed.get(server, 0.0) + streams * EVERY_S / interval_s
                self._owed[server] = owed - int(owed)
                if server in self.unfair:
                    self.paces.unfair(server)
                elif streams:
                    self.paces.observe(server, self.now_s, EVERY_S, streams, int(owed), streams, self.told_s)
            for server in self.paces.judge(self.now_s):
                slow.setdefault(server, self.now_s - began_s)
        return slow


def fleet(*intervals_s: float, **given: float) -> Fleet:
    return Fleet({f"s{i}": each for i, each in enumerate(intervals_s)}, **given)  # type: ignore[arg-type]


def test_ten_times_slower_is_seen_within_seconds() -> None:
    up = fleet(0.2, 0.2, 0.2)
    assert up.run(20) == {}
    up.interval_s["s0"] = 2.0
    slow = up.run(10)
    assert slow.keys() == {"s0"}
    assert 4.0 <= slow["s0"] <= 7.0


def test_with_few_streams_of_an_engine_too() -> None:
    up = Fleet({"s0": 0.2, "s1": 0.2}, streams={"s0": 1, "s1": 1})
    assert up.run(20) == {}
    up.interval_s["s0"] = 2.0
    assert up.run(10).keys() == {"s0"}


def test_what_the_server_measured_itself_does_to_begin_with() -> None:
    up = fleet(2.0, 0.2, told_s=0.2)
    assert up.run(10).keys() == {"s0"}
    assert fleet(2.0, 0.2).run(60) == {}, "of a server that was never faster nobody knows that it is slow"


def test_all_slower_is_nobodys_fault() -> None:
    up = fleet(0.2, 0.2, 0.2)
    up.run(20)
    up.interval_s = dict.fromkeys(up.interval_s, 2.0)
    assert up.run(120) == {}
    assert up.run(120) == {}


def test_alone_there_is_nothing_to_compare_with() -> None:
    up = Fleet({"s0": 0.2, "s1": 0.2}, streams={"s1": 0})
    up.run(20)
    up.interval_s["s0"] = 2.0
    assert up.run(30) == {}


def test_a_server_that_was_always_slower_is_only_dear() -> None:
    assert fleet(1.2, 0.1, 0.1).run(120) == {}


def test_three_times_slower_or_a_short_stop_is_not_enough() -> None:
    up = fleet(0.2, 0.2, 0.2)
    up.run(20)
    up.interval_s["s0"] = 0.6
    assert up.run(60) == {}
    up = fleet(0.2, 0.2, 0.2)
    up.run(20)
    up.interval_s["s0"] = 1e6
    assert up.run(3) == {}
    up.interval_s["s0"] = 0.2
    assert up.run(20) == {}


def test_faster_than_anyone_reads_is_not_slow() -> None:
    up = fleet(0.002, 0.002)
    up.run(20)
    up.interval_s["s0"] = 0.07
    assert up.run(60) == {}
    up.interval_s["s0"] = 0.5
    assert up.run(10).keys() == {"s0"}


def test_a_full_batch_is_not_judged_nor_taken_for_usual() -> None:
    up = fleet(0.2, 0.2)
    up.run(20)
    up.unfair = {"s0"}
    up.interval_s["s0"] = 4.0
    assert up.run(60) == {}
    up.unfair = set()
    up.interval_s["s0"] = 0.2
    assert up.run(20) == {}
    up.interval_s["s0"] = 2.0
    assert up.run(10).keys() == {"s0"}, "what was usual is still known"


def test_a_batch_of_64_is_slower_than_one_of_two_and_that_is_no_fault() -> None:
    up = Fleet({"s0": 0.05, "s1": 0.05}, streams={"s0": 2, "s1": 2})
    up.run(20)
    up.streams["s0"] = 64
    up.interval_s["s0"] = 0.05 * 4.5
    assert up.run(60) == {}


def test_slow_until_it_is_well_again_and_not_before() -> None:
    up = fleet(0.2, 0.2, 0.2)
    up.run(20)
    up.interval_s["s0"] = 2.0
    up.run(10)
    up.interval_s["s0"] = 0.6
    assert up.run(20).keys() == {"s0"}
    up.interval_s["s0"] = 0.25
    up.run(6)
    assert up.run(20) == {}


def test_a_server_that_was_emptied_is_as_usual_before_when_it_is_asked_again() -> None:
    up = fleet(0.2, 0.2, 0.2)
    up.run(20)
    up.interval_s["s0"] = 2.0
    up.run(10)
    up.streams["s0"] = 0
    up.run(6)
    assert up.run(30) == {}
    up.streams["s0"] = 3
    assert up.run(10).keys() == {"s0"}, "still slow, and still known for what it was"


def test_who_is_gone_is_forgotten() -> None:
    up = fleet(0.2, 0.2)
    up.run(20)
    up.interval_s["s0"] = 2.0
    up.run(10)
    up.paces.keep({"s1"})
    assert up.paces.judge(up.now_s) == frozenset()
