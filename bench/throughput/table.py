"""The rows as tables: medians over the rounds, ratios of medians. `python -m bench.throughput.table ROWS.jsonl`"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from bench.throughput.load import Row

# As ADR and issue have them.
ENGINE_SHARE, FRONT_TOKENS_PER_S, ROUTERS_RATIO = 0.95, 10_000, 3.2
_ALONE = "AsyncLLM alone"
_VLLM = ("engine", "core")


def report(rows: Sequence[Row]) -> str:
    """All tables for which there are rows."""
    sets = dict.fromkeys((row["part"], row.get("model"), row.get("step_ms")) for row in rows if row["part"] in _VLLM)
    made = [_engine(rows, *each) for each in sets]
    return "\n\n".join(filter(None, [*made, _front(rows), _routers(rows)])) + "\n"


def _engine(rows: Sequence[Row], part: object, model: object, step_ms: object) -> str:
    mine = [row for row in _of(rows, part=part, model=model) if row.get("step_ms") == step_ms]
    alone = _median(_of(mine, way=_ALONE), "tokens_per_s")
    lines = []
    for way in dict.fromkeys(row["way"] for row in mine):
        here = _of(mine, way=way)
        got = _median(here, "tokens_per_s")
        share = f"{got / alone:.1%}" if got and alone and way != _ALONE else ""
        figures = ("server_us_per_token", "server_cores", "router_us_per_token", "load_cores_most")
        spread = " to ".join(_cell(edge) for edge in _edges(here, "tokens_per_s"))
        ttft = _cell(_median(here, "ttft_p50_ms"), 0)
        cells = [_cell(_median(here, figure), 2) for figure in figures]
        lines.append([str(way), str(len(here)), _cell(got), spread, share, ttft, *cells])
    streams, first = mine[0]["streams"], _of(mine, way=_ALONE) or mine
    about = f"{model}, {streams} streams at once, {first[0].get('engine', '')}, {first[0].get('accelerator', '')}"
    about += f", a made-up core's step every {step_ms:g} ms:" if isinstance(step_ms, int | float) else ":"
    head = ["way", "rounds", "tokens/s", "from to", f"of {_ALONE} (≥ {ENGINE_SHARE:.0%})", "TTFT p50, ms"]
    costs = ["server's front end, µs a token", "its cores", "router, µs a token", "load's cores, most of a process"]
    return f"{about}\n\n{_table([*head, *costs], lines)}"


def _front(rows: Sequence[Row]) -> str:
    mine = _of(rows, part="front")
    if not mine:
        return ""
    lines = []
    for pace, way in dict.fromkeys((row["pace"], row["way"]) for row in mine):
        here = _of(mine, pace=pace, way=way)
        figures = ("server_us_per_token", "server_cores", "load_cores_most", "load_lag_p99_ms")
        cells = [_cell(_median(here, figure), 2) for figure in figures]
        lines.append([f"{way}, {pace}", str(len(here)), _cell(_median(here, "tokens_per_s")), *cells])
    head = ["server alone, simulated engine", "rounds", f"tokens/s (≥ {FRONT_TOKENS_PER_S:,})", "CPU, µs a token"]
    return _table([*head, "its cores", "load's cores, most of a process", "load's lag p99, ms"], lines)


def _routers(rows: Sequence[Row]) -> str:
    mine = _of(rows, part="routers")
    if not mine:
        return ""
    one = {row["round"]: row for row in mine if row["way"] == "x1"}
    lines = []
    for way in dict.fromkeys(row["way"] for row in mine):
        here = _of(mine, way=way)
        ratios = [
            _number(row["tokens_per_s"]) / _number(one[row["round"]]["tokens_per_s"])
            for row in here
            if row["round"] in one
        ]
        ratio = f"{median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})" if ratios and way != "x1" else ""
        figures = ("router_us_per_token", "router_cores", "mock_cores_most", "load_cores_most")
        cells = [_cell(_median(here, figure), 2) for figure in figures]
        cores = _spread(here, "process_cores", 2)
        got = _cell(_median(here, "tokens_per_s"))
        channels = f"{here[0]['channels']} ({_spread(here, 'process_channels', 0)})"
        lines.append([str(way), str(len(here)), channels, got, ratio, *cells[:2], cores, *cells[2:]])
    head = ["router processes", "rounds", "channels (of a process)", "tokens/s"]
    more = ["CPU, µs a token", "cores", "of a process", "mocks' cores, most", "load's cores, most"]
    return _table([*head, f"of one (≥ {ROUTERS_RATIO} x with four)", *more], lines)


def _spread(rows: Sequence[Row], figure: str, digits: int) -> str:
    """Of the process that has least to the one that has most; rows of before do not tell."""
    edges = [_median(rows, f"{figure}_{edge}") for edge in ("least", "most")]
    return " to ".join(_cell(edge, digits) for edge in edges)


def _of(rows: Iterable[Row], **wanted: object) -> list[Row]:
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _median(rows: Iterable[Row], figure: str) -> float | None:
    values = [_number(row[figure]) for row in rows if figure in row]
    return median(values) if values else None


def _edges(rows: Iterable[Row], figure: str) -> tuple[float, float]:
    values = [_number(row[figure]) for row in rows]
    return min(values), max(values)


def _cell(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    written = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in written)


def main() -> None:
    """Print the tables of rows that were kept."""
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    sys.stdout.write(report([json.loads(line) for line in lines]))


if __name__ == "__main__":
    main()
