"""Draws docs/images/relay-*.png from bench/results/relay.json. Runs in .cache/peers, which has matplotlib.

`.cache/peers/bin/python bench/relay/plots.py`
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "relay.json"
IMAGES = ROOT / "docs" / "images"


def by_streams(results: list[dict[str, float | str]], figure: str) -> dict[str, dict[int, float]]:
    """Medians over the rounds of paced streams, by system and count."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        how, _, count = str(result["case"]).partition(" ")
        if how == "paced" and figure in result:
            found[str(result["system"])][int(count)].append(float(result[figure]))
    return {name: {count: median(values) for count, values in counts.items()} for name, counts in found.items()}


def draw(series: dict[str, dict[int, float]], title: str, unit: str, path: Path) -> None:
    """One line a system over the count of streams."""
    figure, axes = plt.subplots(figsize=(7, 4), dpi=130)
    for name, points in series.items():
        counts = sorted(points)
        style = {"linewidth": 2.5} if name.startswith("stoker") else {"linewidth": 1.2}
        axes.plot(counts, [points[count] for count in counts], marker="o", label=name, **style)
    axes.set(title=title, xlabel="streams, a token every 20 ms each", ylabel=unit, xscale="log", yscale="log")
    counts = sorted({count for points in series.values() for count in points})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main() -> int:
    """The process's exit status."""
    results = json.loads((Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS).read_text())["results"]
    IMAGES.mkdir(parents=True, exist_ok=True)
    cost = {name: points for name, points in by_streams(results, "cpu_us_per_token").items() if "direct" not in name}
    draw(cost, "The router's CPU for each token", "µs", IMAGES / "relay-cpu.png")
    draw(by_streams(results, "delay_p99_ms"), "From made to received, p99", "ms", IMAGES / "relay-delay.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
