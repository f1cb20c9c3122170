"""What a simulation found, as a picture: PNG or SVG, by matplotlib, which only this module imports.

The curves are shares of requests that took longer, on logarithmic axes: there a tail of one in a thousand is as easy to
see as the median.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava_grpc.config import SettingsError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from llava_grpc.sim.report import Report

FORMATS = (".png", ".svg")
PERCENTILES = (50, 90, 99, 99.9)
STYLES = ("-", "--", ":", "-.")
COLOURS = 10
"""In matplotlib's own cycle."""
POINTS = 400
"""Of a curve; further ones could not be told apart."""
FEWEST = 5
"""Requests above the lowest share that is drawn: below is luck."""
LEAST = 0.001
"""Seconds at which the time axis begins at the earliest."""


def check_plot(path: Path) -> None:
    """That such a file can be drawn, before anything is computed for it.

    Raises:
        SettingsError: no format has such an ending, or matplotlib is not installed.
    """
    if path.suffix not in FORMATS:
        raise SettingsError(f"--plot draws PNG or SVG; {path.name!r} ends neither in .png nor in .svg")
    if importlib.util.find_spec("matplotlib") is None:
        raise SettingsError("--plot draws with matplotlib, which is not installed: pip install 'llava-grpc[plots]'")


def save_plot(report: Report, path: Path) -> None:
    """Draw the report's curves into a file; equal reports give equal files."""
    import matplotlib

    # Text stays text in SVG, and names of its parts are not drawn by lot.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": report.preset}):
        figure_of(report).savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def figure_of(report: Report) -> Figure:
    """The curves, each with its name."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    curves = {
        name: sorted(max(value, LEAST) for value in values if not math.isnan(value))
        for name, values in report.curves.items()
    }
    curves = {name: values for name, values in curves.items() if values}
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    lowest = min((max(FEWEST / len(values), 1e-4) for values in curves.values()), default=1.0)
    lowest = min(lowest, 0.1)
    for number, (name, values) in enumerate(curves.items()):
        style = STYLES[number // COLOURS % len(STYLES)]
        axes.plot(*longer(values), style, label=name, drawstyle="steps-post", linewidth=1.8)
    axes.set(
        title=f"{report.preset}: {report.requests:,} requests, seed {report.seed}",
        xlabel=f"{report.curve_label}, seconds",
        ylabel="share of requests that took longer",
        xscale="log",
        yscale="log",
        ylim=(lowest, 1.0),
    )
    first, last = axes.get_xlim()
    if last / first < 1000:  # decades alone would leave the axis bare
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.grid(which="major", alpha=0.3)
    axes.grid(which="minor", alpha=0.1)
    for percent in PERCENTILES:
        share = 1 - percent / 100
        if share > 1.2 * lowest:
            axes.axhline(share, color="grey", linewidth=0.8, linestyle=(0, (1, 3)))
            axes.annotate(
                f"p{percent:g}", (1.005, share), xycoords=("axes fraction", "data"), va="center", color="grey"
            )
    if curves:
        figure.legend(loc="outside right upper", frameon=False)
    return figure


def longer(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Of sorted values: some of them, and for each the share of all that are greater by rank."""
    count = len(values)
    ranks = sorted({min(count - 1, round(count * (1 - count ** (-step / POINTS)))) for step in range(POINTS + 1)})
    return [values[rank] for rank in ranks], [1 - (rank + 1) / count for rank in ranks]
