from discovery.endpoint import Load
from model_server.progress import Progress, Watch

BUSY = Load(running=2)


class Bench:
    """A link's watch over two streams, of which the first one moves at each look."""

    def __init__(self) -> None:
        self.watch = Watch()
        self.streams = {1: Progress(), 2: Progress()}
        self.now_s, self.step = 10.0, 0

    def look(self, load: Load = BUSY) -> list[int]:
        self.now_s += 0.5
        self.step += 10
        self.streams[1].outputs += 10
        assert self.watch.due(self.now_s, self.step)
        return self.watch.look(self.now_s, self.step, load, self.streams)


def test_a_stream_that_is_left_out_between_two_looks_is_idle() -> None:
    bench = Bench()
    bench.streams[2].outputs = 5
    assert bench.look() == []
    assert bench.look() == [2]
    bench.streams[2].outputs += 1
    assert bench.look() == []


def test_a_prompt_that_is_computed_is_not_idle() -> None:
    bench = Bench()
    assert [bench.look() for _ in range(5)] == [[]] * 5


def test_while_something_waits_nobody_knows_who_runs() -> None:
    bench = Bench()
    bench.streams[2].outputs = 5
    bench.look()
    assert bench.look(Load(running=1, waiting=1)) == []
    assert bench.look() == []
    assert bench.look() == [2]


def test_looks_are_half_a_second_and_some_steps_apart() -> None:
    bench = Bench()
    bench.look()
    assert not bench.watch.due(bench.now_s + 0.4, bench.step + 10)
    assert not bench.watch.due(bench.now_s + 0.6, bench.step + 1)
    assert bench.watch.due(bench.now_s + 0.6, bench.step + 2)
