"""bench/throughput: what goes between its processes, and what its tables say of rows."""

import os
import socket
from contextlib import ExitStack

from bench.throughput import shares
from bench.throughput.job import Done, Job, Span
from bench.throughput.load import Row
from bench.throughput.table import report


def test_what_goes_between_processes_comes_back_as_it_was() -> None:
    job = Job("127.0.0.1:1", "calls", "m", 64, 512, 7, prompt_tokens=64, vocabulary=32_000)
    assert Job.parse(job.line()) == job
    for span in (Span(1.5, None), Span(1.5, 3.0)):
        assert Span.parse(span.line()) == span
    done = Done(12, 3.25, [1.0, 2.0], 0.5, 0.1)
    assert Done.parse(done.line()) == done


ROUND = (("AsyncLLM alone", 1000.0), ("link", 500.0))


def _engine(way: str, tokens_per_s: float) -> Row:
    return {"part": "engine", "model": "m", "way": way, "streams": 256, "tokens_per_s": tokens_per_s}


def test_the_mesh_is_held_against_the_engine_alone_by_medians() -> None:
    rows = [_engine("AsyncLLM alone", rate) for rate in (1000.0, 2000.0, 900.0)]
    rows += [_engine("link", rate) for rate in (960.0, 100.0, 970.0)]
    assert "| link | 3 | 960 | 100 to 970 | 96.0% |" in report(rows)


def test_an_interrupted_run_has_a_table_of_what_there_is() -> None:
    assert report([]) == "\n"
    assert "| link | 1 | 960 | 960 to 960 |  |" in report([_engine("link", 960.0)])


def test_a_made_up_core_has_tables_of_its_own_by_its_steps() -> None:
    rows = [{**_engine(way, rate), "part": "core", "step_ms": ms} for ms in (5.0, 14.0) for way, rate in ROUND]
    tables = report([*rows, _engine("link", 1.0)]).split("\n\n")
    assert [line for line in tables if "made-up" in line] == [
        f"m, 256 streams at once, , , a made-up core's step every {ms} ms:" for ms in (5, 14)
    ]
    assert sum("| link | 1 | 500 | 500 to 500 | 50.0% |" in table for table in tables) == 2


def _routers(way: str, number: int, tokens_per_s: float) -> Row:
    return {"part": "routers", "way": way, "round": number, "channels": 32, "tokens_per_s": tokens_per_s}


def test_processes_are_held_against_one_within_a_round() -> None:
    rows = [_routers("x1", 0, 10.0), _routers("x4", 0, 35.0), _routers("x4", 1, 90.0), _routers("x1", 1, 30.0)]
    assert "3.25 x (3.00 to 3.50)" in report(rows)


def test_it_is_told_how_unevenly_processes_share_channels_and_work() -> None:
    spread: Row = {"process_channels_least": 5, "process_channels_most": 11}
    cores: Row = {"process_cores_least": 0.5, "process_cores_most": 1.0}
    assert "| x4 | 1 | 32 (5 to 11) | 35 |" in report([{**_routers("x4", 0, 35.0), **spread, **cores}])
    assert "| 0.50 to 1.00 |" in report([{**_routers("x4", 0, 35.0), **spread, **cores}])


def test_a_process_has_the_connections_that_it_has_taken() -> None:
    with ExitStack() as stack:
        listening = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        port, other = (each.getsockname()[1] for each in listening)
        for to in (port, port, port, other):
            stack.enter_context(socket.create_connection(("127.0.0.1", to)))
        for each in (listening[0], listening[0], listening[1]):
            stack.enter_context(each.accept()[0])
        assert shares.row([os.getpid()], port) == {"process_channels_least": 2, "process_channels_most": 2}
