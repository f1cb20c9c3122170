"""Questions of queues: does the simulator find what theory knows, and what late binding, deadlines and fair shares do.

Each has a load, a fleet and the figures that answer it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from llava_grpc.config import SettingsError
from llava_grpc.core.admission import QueueLimits
from llava_grpc.core.strategies import STRATEGIES
from llava_grpc.sim import closed_forms
from llava_grpc.sim.doors import UNBOUNDED
from llava_grpc.sim.fleets import (
    COSTS,
    after_warm_up,
    binding,
    load_of,
    peak_rate,
    run,
)
from llava_grpc.sim.measure import percentile
from llava_grpc.sim.questions import Question
from llava_grpc.sim.report import Cell, Report
from llava_grpc.sim.service import Spec
from llava_grpc.sim.workload import Job, Request, chats

# ------------------------------------------------------------------------------------------------------ closed-forms


def ask_closed_forms(question: Question) -> Report:
    """The simulator against queueing theory."""
    if question.strategies or question.arrivals != "poisson":
        raise SettingsError("closed-forms has its own strategies and arrivals; leave --strategy and --arrivals out")
    rows: list[tuple[Cell, ...]] = []
    for system in closed_forms.SYSTEMS:
        for load in closed_forms.LOADS:
            found = closed_forms.mean_response(system, load, question.requests, question.seed, question.progress)
            exact = system.exact(load)
            off = 100 * (found.mean / exact - 1)
            rows.append(
                (system.name, load, found.mean, exact, off, 100 * found.half_width / exact, found.covers(exact))
            )
    return Report(
        preset="closed-forms",
        seed=question.seed,
        requests=question.requests,
        columns=("system", "load", "mean_response", "exact", "off_percent", "interval_percent", "inside"),
        rows=rows,
        notes=(
            "Mean work is 1. The interval is 99 %, by batch means with a control variate: one in a hundred is outside.",
            "Two choices: exact as servers grow in number; 200 are a little slower. Random needs the most requests.",
        ),
    )


# ----------------------------------------------------------------------------------------------------- heterogeneous

SPEEDS = (1.0, 1.0, 2.0, 4.0)
SLOTS = (5, 8, 16)
"""Of each worker, in turn. 5: LLaVA's --limit-model-concurrency by default."""
DRAWN = 8


def ask_heterogeneous(question: Question, slots: Sequence[int] = SLOTS) -> Report:
    """Workers of speeds 1, 1, 2 and 4, at 90 % of what they can do; once for each number of slots."""
    rows: list[tuple[Cell, ...]] = []
    curves: dict[str, list[float]] = {}
    for each in slots:
        fleet = tuple(Spec(speed, each) for speed in SPEEDS)
        random = Random(f"{question.seed} requests")
        lengths = chats(question.requests, random)
        requests = load_of(lengths, 0.9 * peak_rate(fleet, lengths), random, arrivals=question.arrivals)
        for name in question.strategies:
            done = after_warm_up(run(name, requests, fleet, seed=question.seed, progress=question.progress))
            first = [job.to_first_token for job in done]
            whole = [job.response for job in done]
            if each == DRAWN:
                curves[name] = first
            rows.append(
                (each, name, binding(name), *(percentile(first, p) for p in (50, 90, 99)), percentile(whole, 99))
            )
    return Report(
        preset="heterogeneous",
        seed=question.seed,
        requests=question.requests,
        columns=(
            "slots",
            "strategy",
            "waits_at",
            "first_token_p50",
            "first_token_p90",
            "first_token_p99",
            "answer_p99",
        ),
        rows=rows,
        notes=("4 workers of speeds 1, 1, 2, 4, so many slots each, 90 % load; the same requests for each. Seconds.",),
        curves=curves,
        curve_label=f"time to first token, {DRAWN} slots",
    )


# ---------------------------------------------------------------------------------------------------------- overload

ALIKE = (Spec(slots=8),) * 4
PATIENCE = (10.0, 60.0)


def ask_overload(question: Question) -> Report:
    """Twice what the fleet can do, each request with a deadline."""
    random = Random(f"{question.seed} requests")
    lengths = chats(question.requests, random)
    rate = 2 * peak_rate(ALIKE, lengths)
    requests = load_of(lengths, rate, random, arrivals=question.arrivals, patience=PATIENCE)
    begin, end = requests[len(requests) // 10].at, requests[-1].at
    capacity = (end - begin) * len(ALIKE)
    rows: list[tuple[Cell, ...]] = []
    curves: dict[str, list[float]] = {}
    for name in question.strategies:
        done = run(name, requests, ALIKE, seed=question.seed, limits=QueueLimits(), progress=question.progress)
        in_window = [job for job in done if job.error is None and begin < job.finished <= end]
        late = sum(_dispatched_late(job) for job in done)
        first = [job.to_first_token for job in after_warm_up(done) if job.error is None]
        curves[name] = first
        rows.append(
            (
                name,
                100 * sum(_work(job) for job in in_window) / capacity,
                100 * sum(_work(job) for job in in_window if job.in_time) / capacity,
                100 * sum(job.error is not None for job in done) / len(done),
                late,
                percentile(first, 50),
                percentile(first, 99),
            )
        )
    return Report(
        preset="overload",
        seed=question.seed,
        requests=question.requests,
        columns=(
            "strategy",
            "work_percent_of_peak",
            "in_time_percent_of_peak",
            "refused_percent",
            "dispatched_late",
            "first_token_p50",
            "first_token_p99",
        ),
        rows=rows,
        notes=(
            "4 workers of 8 slots, twice the load that they can carry; deadlines 10 to 60 s after arrival; a waiting "
            "request may wait for 60 s, 256 at once. Seconds.",
            "A request that runs past its deadline is finished all the same here: in a fleet its client cancels it.",
        ),
        curves=curves,
        curve_label="time to first token of those served",
    )


def _work(job: Job) -> float:
    return COSTS.seconds(job.request.prompt, job.request.answer, ALIKE[0].slots)


def _dispatched_late(job: Job) -> bool:
    return job.request.deadline is not None and job.dispatched >= job.request.deadline


# ----------------------------------------------------------------------------------------------------------- tenants

SHARED = (Spec(slots=4),) * 4
CALM, FLOOD = "calm", "flood"
CALM_LOAD, FLOOD_LOAD = 0.8, 10.0
"""Of each tenant's share, which is half the fleet."""


def ask_tenants(question: Question) -> Report:
    """Two tenants with equal shares; one sends ten times its own."""
    random = Random(f"{question.seed} requests")
    lengths = chats(question.requests, random)
    share = peak_rate(SHARED, lengths) / 2
    calm = load_of(lengths, CALM_LOAD * share, random, arrivals=question.arrivals, tenant=CALM)
    more = random.choices(lengths, k=round(question.requests * FLOOD_LOAD / CALM_LOAD))
    flood = load_of(more, FLOOD_LOAD * share, random, arrivals=question.arrivals, tenant=FLOOD)
    both = sorted(calm + [request for request in flood if request.at <= calm[-1].at], key=lambda request: request.at)
    rows: list[tuple[Cell, ...]] = []
    curves: dict[str, list[float]] = {}

    def row(label: str, name: str, requests: Sequence[Request], fleet: Sequence[Spec], limits: QueueLimits) -> None:
        done = run(name, requests, fleet, seed=question.seed, limits=limits, progress=question.progress)
        its = after_warm_up([job for job in done if job.request.tenant == CALM])
        served = [job for job in its if job.error is None]
        waits = [job.wait for job in served]
        refused = 100 * (1 - len(served) / len(its))
        curves[f"{name}, {label}"] = [job.to_first_token for job in served]
        first = percentile([job.to_first_token for job in served], 99)
        rows.append((name, label, refused, percentile(waits, 50), percentile(waits, 99), first))

    for name in question.strategies:
        row("alone", name, calm, SHARED, UNBOUNDED)
        row("on its share alone", name, calm, SHARED[: len(SHARED) // 2], UNBOUNDED)
        row("beside the flood", name, both, SHARED, UNBOUNDED)
        if name in STRATEGIES:
            row("and a queue of 256", name, both, SHARED, replace(QueueLimits(), wait=UNBOUNDED.wait))
    return Report(
        preset="tenants",
        seed=question.seed,
        requests=question.requests,
        columns=("strategy", "calm_tenant", "refused_percent", "wait_p50", "wait_p99", "first_token_p99"),
        rows=rows,
        notes=(
            "4 workers of 4 slots; the calm tenant sends 80 % of its share (half the fleet), the other ten times its "
            "own. Seconds, of the calm tenant. Its share: 2 workers to itself. 256: the most that may wait.",
        ),
        curves=curves,
        curve_label="time to first token of the calm tenant",
    )
