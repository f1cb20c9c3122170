"""What a preset is asked, and what a preset is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llava_grpc.sim.fleets import Progress
from llava_grpc.sim.report import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a preset is told. `strategies` empty: the preset's own. `arrivals`: one of fleets.ARRIVALS."""

    seed: int
    requests: int
    strategies: tuple[str, ...] = ()
    arrivals: str = "poisson"
    progress: Progress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A question: its answer, how many requests it takes by default, and how many jobs it runs for one request.

    `plots`: the answer has distributions to draw.
    """

    ask: Callable[[Question], Report]
    about: str
    requests: int
    strategies: tuple[str, ...]
    jobs_a_request: Callable[[int], float]
    """By the number of strategies; an estimate, for a progress bar."""
    plots: bool = True
