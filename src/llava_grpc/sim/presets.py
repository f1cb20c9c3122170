"""What the simulator can be asked, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llava_grpc.config import DEFAULT_STRATEGY, SettingsError
from llava_grpc.core.strategies import STRATEGIES
from llava_grpc.sim import closed_forms, failures, queueing, reuse, scale
from llava_grpc.sim.fleets import ARRIVALS, strategy_names
from llava_grpc.sim.questions import Preset, Question
from llava_grpc.sim.report import Report

__all__ = ["PRESETS", "Preset", "Question", "ask"]

CACHES = (
    *STRATEGIES,
    "random",
    "round_robin",
    "two_choices",
    "peak_ewma",
    "late_round_robin",
    "oracle_in_order",
    "oracle",
)
"""Whom to compare where it matters what a worker has at hand."""

PRESETS: Mapping[str, Preset] = {
    "closed-forms": Preset(
        ask=queueing.ask_closed_forms,
        about="the simulator against queueing theory: random, central queue, two choices",
        requests=100_000,
        strategies=(),
        jobs_a_request=lambda _: len(closed_forms.SYSTEMS) * len(closed_forms.LOADS),
        plots=False,
    ),
    "heterogeneous": Preset(
        ask=queueing.ask_heterogeneous,
        about="workers of speeds 1, 1, 2 and 4 at 90 % load: time to first token, against LLaVA's own rule",
        requests=20_000,
        strategies=(
            DEFAULT_STRATEGY,
            "shortest_queue",
            "lottery",
            "shortest_at_once",
            "llava",
            "llava_speeds",
            "llava_stale",
        ),
        jobs_a_request=lambda strategies: strategies * len(queueing.SLOTS),
    ),
    "failures": Preset(
        ask=failures.ask_failures,
        about="workers that die, noticed at once, late or by silence alone, and heartbeats that are lost",
        requests=10_000,
        strategies=(*STRATEGIES, "round_robin", "llava"),
        jobs_a_request=lambda strategies: strategies * len(failures.CASES),
    ),
    "no-reuse": Preset(
        ask=reuse.ask_no_reuse,
        about="goodput where nobody asks about the same picture twice",
        requests=5_000,
        strategies=CACHES,
        jobs_a_request=reuse.jobs_a_request,
    ),
    "overload": Preset(
        ask=queueing.ask_overload,
        about="twice the load that the fleet can carry: what is still done, and in time",
        requests=20_000,
        strategies=(DEFAULT_STRATEGY, "shortest_queue", "llava"),
        jobs_a_request=lambda strategies: strategies,
    ),
    "reuse": Preset(
        ask=reuse.ask_reuse,
        about="goodput of conversations about pictures, four in five seen before, against an oracle",
        requests=5_000,
        strategies=CACHES,
        jobs_a_request=reuse.jobs_a_request,
    ),
    "scale": Preset(
        ask=scale.ask_scale,
        about="1,000 workers and about 10,000 requests at once",
        requests=50_000,
        strategies=tuple(STRATEGIES),
        jobs_a_request=lambda strategies: strategies,
    ),
    "tenants": Preset(
        ask=queueing.ask_tenants,
        about="one tenant sends ten times its share: what the other notices",
        requests=4_000,
        strategies=(DEFAULT_STRATEGY, "shortest_queue", "llava"),
        jobs_a_request=lambda strategies: strategies * (4 + 2 * queueing.FLOOD_LOAD / queueing.CALM_LOAD),
    ),
}


def ask(name: str, question: Question) -> Report:
    """The answer of a preset.

    Raises:
        SettingsError: there is no such preset, or a strategy makes no sense.
    """
    if name not in PRESETS:
        raise SettingsError(f"there is no preset {name!r}; use one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    if question.arrivals not in ARRIVALS:
        raise SettingsError(f"there are no {question.arrivals!r} arrivals; use one of {', '.join(ARRIVALS)}")
    for strategy in question.strategies:
        if strategy not in strategy_names():
            raise SettingsError(f"there is no strategy {strategy!r}; use one of {', '.join(strategy_names())}")
    if not question.strategies:
        question = replace(question, strategies=preset.strategies)
    return preset.ask(question)
