"""Draw what `peers.py` has measured: a bar for each way of doing a kind of work, on a logarithmic axis.

python benchmarks/plots.py FOLDER       reads JSON, {kind: [[name, value, label, color], ...]}, and writes an SVG for each kind
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

GRAY = "#888888"  # can be read on light and on dark


def plot(path: Path, bars: list[tuple[str, float, str, str]]) -> None:
    mpl.rcParams.update(
        {"svg.hashsalt": path.stem, "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
    )
    names, values, labels, colors = zip(*reversed(bars), strict=True)  # the first at the top
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.34 * len(bars)))
    drawn: Any = axes.barh(names, values, color=colors, height=0.7)
    axes.bar_label(drawn, labels, padding=4, color=GRAY)
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 2, max(values) * 6)
    axes.xaxis.set_visible(False)
    axes.tick_params(axis="y", length=0, labelcolor=GRAY)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, bars in json.load(sys.stdin).items():
        plot(folder / f"{kind}.svg", bars)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
