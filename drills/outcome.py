"""What drills found: for people a table, for machines one JSON object."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.table import Table

from drills.load import Asked, Load

SHOWN = 5
"""Failed requests of a drill that are told of one by one."""


@dataclass
class Outcome:
    """Of one drill. `broken`: the demands that were not met; it has failed if there are any.

    Times are milliseconds: `detect_ms` from each fault until the controller acted on it, `cancel_ms` from each cancel
    until its slot was free. `streams` are those that were cut after their first token.
    """

    drill: str
    kills: int = 0
    answers: int = 0
    streams: int = 0
    identical: int = 0
    different: int = 0
    lost: int = 0
    leaked: int = 0
    detect_ms: list[float] = field(default_factory=list)
    cancel_ms: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0

    def require(self, holds: bool, demand: str) -> None:
        """Note a demand that is not met."""
        if not holds:
            self.broken.append(demand)

    def judge(self, load: Load) -> None:
        """Count what became of a load, and demand that all of it was answered, as without a fault."""
        cut = [asked for asked in load.ended if asked.cut]
        lost = [asked for asked in load.ended if asked.error is not None]
        different = [asked for asked in load.ended if asked.error is None and not asked.identical]
        self.answers += len(load.ended)
        self.streams += len(cut)
        self.identical += sum(asked.identical for asked in cut)
        self.lost += len(lost)
        self.different += len(different)
        self.require(not lost, f"{len(lost)} of {len(load.ended)} requests failed: {_told(lost)}")
        self.require(not different, f"{len(different)} answers differ from those without a fault: {_told(different)}")

    @property
    def verdict(self) -> str:
        """In a word or a sentence."""
        if self.skipped:
            return f"skipped: {self.skipped}"
        return "; ".join(self.broken) if self.broken else "ok"


def _told(asked: Sequence[Asked]) -> str:
    told = []
    for one in asked[:SHOWN]:
        if one.error is not None:
            told.append(f"{one.request_id}: {one.error.reason}: {one.error.cause}")
        else:
            sampling = one.question.request.sampling
            told.append(f"{one.request_id} ({'cut' if one.cut else 'not cut'}): {sampling}")
    return "; ".join(told) + (" ..." if len(asked) > SHOWN else "")


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of the values do not exceed; None of none."""
    ordered = sorted(values)
    return round(ordered[max(0, -int(-share * len(ordered) // 1) - 1)], 1) if ordered else None


def table(outcomes: Sequence[Outcome]) -> Table:
    """A row a drill."""
    result = Table(title="Drills", show_lines=True)
    for column in ("drill", "kills", "answers", "cut", "identical", "lost", "leaked", "detect p99", "cancel p99", "s"):
        result.add_column(column, justify="left" if column == "drill" else "right")
    result.add_column("verdict", overflow="fold")
    for one in outcomes:
        counts = (one.kills, one.answers, one.streams, one.identical, one.lost, one.leaked)
        times = (percentile(one.detect_ms, 0.99), percentile(one.cancel_ms, 0.99))
        cells = [*map(str, counts), *("-" if value is None else f"{value:.1f} ms" for value in times)]
        verdict = "\n".join([one.verdict, *one.notes])
        result.add_row(one.drill, *cells, f"{one.seconds:.0f}", verdict, style="red" if one.broken else None)
    return result


def summary(outcomes: Sequence[Outcome], seed: int) -> dict[str, object]:
    """All drills in one. Detection is that of kills, where it is judged; the drills have their own beside it."""
    detect_ms = [value for one in outcomes if one.kills for value in one.detect_ms]
    cancel_ms = [value for one in outcomes for value in one.cancel_ms]
    return {
        "kills": sum(one.kills for one in outcomes),
        "streams": sum(one.streams for one in outcomes),
        "identical": sum(one.identical for one in outcomes),
        "lost": sum(one.lost for one in outcomes),
        "detect_ms_p99": percentile(detect_ms, 0.99),
        "cancel_ms_p99": percentile(cancel_ms, 0.99),
        "leaked": sum(one.leaked for one in outcomes),
        "different": sum(one.different for one in outcomes),
        "answers": sum(one.answers for one in outcomes),
        "broken": [f"{one.drill}: {demand}" for one in outcomes for demand in one.broken],
        "skipped": {one.drill: one.skipped for one in outcomes if one.skipped},
        "drills": {
            one.drill: {
                "kills": one.kills,
                "answers": one.answers,
                "streams": one.streams,
                "identical": one.identical,
                "lost": one.lost,
                "leaked": one.leaked,
                "detect_ms_p50": percentile(one.detect_ms, 0.5),
                "detect_ms_p99": percentile(one.detect_ms, 0.99),
                "cancel_ms_p50": percentile(one.cancel_ms, 0.5),
                "cancel_ms_p99": percentile(one.cancel_ms, 0.99),
                "seconds": round(one.seconds, 1),
                "notes": one.notes,
            }
            for one in outcomes
        },
        "seed": seed,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "kind": platform.machine(),
            "load_average": round(os.getloadavg()[0], 2),
            "python": platform.python_version(),
        },
    }
