"""What a simulation has to say: a table for people and programs alike, and samples to draw curves of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
