"""A thousand workers and some ten thousand requests at once: does the fleet stay even, and nobody wait?"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from llava_grpc.sim.fleets import after_warm_up, load_of, peak_rate, run
from llava_grpc.sim.measure import percentile
from llava_grpc.sim.questions import Question
from llava_grpc.sim.report import Cell, Report
from llava_grpc.sim.service import Spec
from llava_grpc.sim.workload import Job, chats

THOUSAND = tuple(Spec(speed, slots) for speed, slots in ((1.0, 12), (1.0, 14), (2.0, 16), (1.0, 14)) * 250)
LOAD = 0.85


def ask_scale(question: Question) -> Report:
    """A thousand workers at 85 % of what they can do."""
    random = Random(f"{question.seed} requests")
    lengths = chats(question.requests, random)
    requests = load_of(lengths, LOAD * peak_rate(THOUSAND, lengths), random, arrivals=question.arrivals)
    rows: list[tuple[Cell, ...]] = []
    curves: dict[str, list[float]] = {}
    for name in question.strategies:
        done = run(name, requests, THOUSAND, seed=question.seed, progress=question.progress)
        settled = after_warm_up(done)
        curves[name] = first = [job.to_first_token for job in settled]
        picks = [0] * len(THOUSAND)
        for job in done:
            picks[job.node] += 1
        rows.append(
            (
                name,
                *(percentile(first, p) for p in (50, 99)),
                percentile([job.response for job in settled], 99),
                live_peak(done),
                100 * sum(job.wait > 0 for job in settled) / max(1, len(settled)),
                min(picks),
                max(picks),
            )
        )
    return Report(
        preset="scale",
        seed=question.seed,
        requests=question.requests,
        columns=(
            "strategy",
            "first_token_p50",
            "first_token_p99",
            "answer_p99",
            "live_peak",
            "waited_percent",
            "picks_least",
            "picks_most",
        ),
        rows=rows,
        notes=(
            "1,000 workers of 12 to 16 slots, a quarter of them twice as fast, 85 % load. Live: with a worker at the "
            "same moment. Picks: how often the worker picked least and "
            "most was. Seconds.",
        ),
        curves=curves,
        curve_label="time to first token",
    )


def live_peak(done: Sequence[Job]) -> int:
    """The most requests that were with a worker at the same moment."""
    served = [job for job in done if job.error is None]
    changes = sorted([(job.dispatched, 1) for job in served] + [(job.finished, -1) for job in served])
    live = most = 0
    for _, change in changes:
        live += change
        most = max(most, live)
    return most
