"""What a simulation has to say: a table for people and programs alike, and curves."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

Cell = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The outcome of a preset. Columns are named as in JSON; times are in seconds unless the name says otherwise."""

    preset: str
    seed: int
    requests: int
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    notes: tuple[str, ...] = ()
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Samples to plot the distribution of, by name."""
    curve_label: str = ""

    def as_dict(self) -> dict[str, object]:
        """For JSON: rows are objects; what is not a number is null."""
        return {
            "preset": self.preset,
            "seed": self.seed,
            "requests": self.requests,
            "rows": [
                {name: _number_or_null(cell) for name, cell in zip(self.columns, row, strict=True)} for row in self.rows
            ],
            "notes": list(self.notes),
        }


def text_of(cell: Cell) -> str:
    """A cell for people."""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return "-" if math.isnan(cell) else f"{cell:,.3f}" if abs(cell) < 100 else f"{cell:,.0f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _number_or_null(cell: Cell) -> Cell | None:
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 420, 64, 190, 44, 52
_COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8f5fbf", "#c98a00", "#4d4d4d", "#00858a")
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_POINTS = 240
_LEAST = 0.001
"""Seconds at which the time axis begins at the earliest."""


def svg(report: Report) -> str:
    """The distributions of its curves: what share is at most so long, over time on a logarithmic axis."""
    curves = {
        name: sorted(value for value in values if not math.isnan(value)) for name, values in report.curves.items()
    }
    curves = {name: values for name, values in curves.items() if values}
    low = max(_LEAST, min((values[len(values) // 100] for values in curves.values()), default=_LEAST))
    high = max((values[-1] for values in curves.values()), default=1.0)
    first, last = (
        math.floor(math.log10(low)),
        max(math.ceil(math.log10(max(high, low))), math.floor(math.log10(low)) + 1),
    )

    def x(exponent: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (exponent - first) / (last - first)

    def y(share: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="24" font-size="14">{escape(report.preset)}, seed {report.seed}, '
        f"{report.requests:,} requests</text>",
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<path d="M{_LEFT} {y(share):.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for decade in range(first, last + 1):
        here = x(decade)
        parts.append(f'<path d="M{here:.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{here:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{10.0**decade:g} s</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 12}" text-anchor="middle">{escape(report.curve_label)}</text>')
    for number, (name, values) in enumerate(curves.items()):
        points = []
        for step in range(_POINTS + 1):
            exponent = first + (last - first) * step / _POINTS
            points.append(f"{x(exponent):.1f} {y(bisect.bisect_right(values, 10**exponent) / len(values)):.1f}")
        style = (
            f'stroke="{_COLOURS[number % len(_COLOURS)]}" stroke-dasharray="{_DASHES[number // len(_COLOURS) % 4]}" '
            'stroke-width="2" fill="none"'
        )
        top = _TOP + 8 + 20 * number
        parts.append(f'<path d="M{"L".join(points)}" {style}/>')
        parts.append(f'<path d="M{_WIDTH - _RIGHT + 14} {top}h24" {style}/>')
        parts.append(f'<text x="{_WIDTH - _RIGHT + 44}" y="{top + 4}">{escape(name)}</text>')
    parts.append("</svg>")
    return "\n".join(parts) + "\n"
