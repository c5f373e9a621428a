"""Tokens a second where they are made: `python -m bench.throughput engine front routers`.

`engine`: vLLM's AsyncLLM alone in one process, and one model server with the same settings behind a router, relayed
over the SDK's link and by plain stubs, and direct; each as `--streams` streams at once. What follows `--` are the model
server's flags: `-- --vllm-load-format dummy`. `core`: the same, without a GPU, before an engine core that is made up
and makes a step every `--step-ms`: vLLM's front end and ours are real. `front`: a server's front end with a simulated
engine that takes no time.
`routers`: several router processes against one, mocks behind them. Rows are written as they come, so that an
interrupted run has kept what it measured.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from bench.relay.systems import ROOT
from bench.throughput.job import WAYS
from bench.throughput.load import Row
from bench.throughput.parts import PARTS
from bench.throughput.table import report

_MODEL = Path(os.environ.get("STOKER_MODEL") or ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct")
RESULTS = ROOT / "bench" / "results" / "throughput.jsonl"


async def run(given: argparse.Namespace, rows: list[Row]) -> None:
    """The parts in order; `rows` has what was measured, whatever happens."""
    with tempfile.TemporaryDirectory() as scratch, given.out.open("a", encoding="utf-8") as out:
        folder = given.logs.absolute() if given.logs else Path(scratch)
        for part in given.parts:
            async for row in PARTS[part](given, folder):
                about = {"at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"), "cpus": os.cpu_count()}
                rows.append({**row, **about})
                out.write(f"{json.dumps(rows[-1])}\n")
                out.flush()
                sys.stderr.write(f"{part} {row.get('pace', '')} {row['way']}: {row['tokens_per_s']} tokens/s\n")


def main() -> None:
    """Parse, measure, write, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=512, help="of each stream")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--window-s", type=float, default=4.0, help="of front and routers")
    parser.add_argument("--load-processes", type=int, default=4, help="that share the streams")
    parser.add_argument("--model", type=Path, default=_MODEL, help="the model's folder")
    parser.add_argument(
        "--together", action="store_true", help="engine: both loaded at once, so that they take turns; memory for two"
    )
    parser.add_argument("--step-ms", type=float, default=5.0, help="core: between two steps of the made-up core")
    parser.add_argument("--processes", type=int, default=4, help="routers: held against one")
    parser.add_argument("--channels", type=int, default=32, help="routers: of all clients together")
    parser.add_argument("--mocks", type=int, default=4, help="routers: mock servers")
    parser.add_argument("--relay-load-processes", type=int, default=16, help="routers: that share the streams")
    parser.add_argument("--logs", type=Path, help="folder to keep the processes' logs in")
    parser.add_argument("--out", type=Path, default=RESULTS, help="rows are added to it")
    # What follows `--` is not ours to parse, though it looks like options.
    mine, theirs = _split(sys.argv[1:])
    given = parser.parse_args(mine)
    given.flags = theirs
    for needed in (given.out.parent, given.logs):
        if needed is not None:
            needed.mkdir(parents=True, exist_ok=True)
    # A shell's background jobs ignore it; `timeout -s INT` is to end this one in order.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rows: list[Row] = []
    try:
        uvloop.run(run(given, rows))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("interrupted: what was measured is kept\n")
    finally:
        sys.stdout.write(report(rows))


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    place = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:place], arguments[place + 1 :]


if __name__ == "__main__":
    main()
