"""What is it worth to send a request where its pictures and prompt are known already?

The figure is goodput: the highest rate of requests, offered in an open loop, at which 99 in 100 see their first token
within an objective: so many times what a first request about an unknown picture takes on an idle fleet. It is found by
bisection; at every rate all strategies get the same conversations, arriving in the same pattern, faster or slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from llava_grpc.sim.caches import Room
from llava_grpc.sim.conversations import SYSTEM, Habits, arriving, conversations
from llava_grpc.sim.fleets import ARRIVALS, binding, run
from llava_grpc.sim.measure import percentile
from llava_grpc.sim.questions import Question
from llava_grpc.sim.report import Cell, Report
from llava_grpc.sim.service import Costs, Spec
from llava_grpc.sim.workload import Job, Request

ORACLE = "oracle"
COSTS = Costs(picture=0.1)
"""Five tiles to see, as LLaVA-NeXT cuts a large picture."""
REUSE = Habits(pool=200, new=0.5, turns=2.5, think=20.0, picture_tokens=2880)
"""Of 2.5 requests of a conversation every other one begins with an unknown picture: four in five are about a known."""
NO_REUSE = replace(REUSE, new=1.0, turns=1.0)
QUARTER = Room(REUSE.pool // 4, REUSE.pool // 4 * REUSE.picture_tokens)
FLEET = (Spec(slots=16, room=QUARTER),) * 4
OBJECTIVE = 5.0
"""Of the time to the first token of a first request about an unknown picture, on an idle fleet."""
MET = 0.99
STEPS = 8
"""Of the bisection: it ends with 1/256 of the rate at which it began."""
COMMON = 0.85
"""Of the oracle's goodput: where the strategies are compared with each other."""


def ask_reuse(question: Question) -> Report:
    """Conversations about pictures that were seen before, four times out of five."""
    return _compare("reuse", question, REUSE)


def ask_no_reuse(question: Question) -> Report:
    """The same fleet, where nobody asks about the same picture twice."""
    return _compare("no-reuse", question, NO_REUSE)


def jobs_a_request(strategies: int) -> float:
    """An estimate: a run for each step, and one to look at."""
    return strategies * (STEPS + 1)


def objective() -> float:
    """Seconds to the first token."""
    return OBJECTIVE * COSTS.reading(SYSTEM.tokens + REUSE.picture_tokens + 40, 1)


def highest(good: Callable[[float], bool], top: float, steps: int = STEPS) -> float:
    """The highest rate below `top` that is good, to top / 2 ** steps, where all below it are; 0.0 where none was."""
    low, high = 0.0, top
    for _ in range(steps):
        middle = (low + high) / 2
        if good(middle):
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True, slots=True)
class _Load:
    """Conversations, to be offered at any rate."""

    question: Question
    asked: Sequence[Request]

    def jobs(self, strategy: str, rate: float) -> list[Job]:
        """Those that arrive once the first fifth of the conversations began, and before the last does."""
        question = self.question
        arrivals = ARRIVALS[question.arrivals](
            rate * len(self.asked) / question.requests, Random(f"{question.seed} arrivals")
        )
        requests = arriving(self.asked, arrivals)
        done = run(strategy, requests, FLEET, seed=question.seed, costs=COSTS, progress=question.progress)
        begin, end = requests[len(requests) // 5].at, requests[-1].at
        return [job for job in done if begin <= job.request.at <= end]

    def goodput(self, strategy: str) -> float:
        limit = objective()

        def good(rate: float) -> bool:
            done = self.jobs(strategy, rate)
            return sum(job.to_first_token <= limit for job in done) >= MET * len(done)

        answer = sum(answer_tokens(request) for request in self.asked) / self.question.requests
        top = sum(spec.speed / COSTS.seconds(0, answer, spec.slots) for spec in FLEET)
        return highest(good, top)


def answer_tokens(request: Request) -> int:
    """Of a whole conversation."""
    total, following = 0, request.then
    while following is not None:
        total, following = total + following.answer, following.then
    return total + request.answer


def seen_before(asked: Sequence[Request]) -> float:
    """The share of requests about a picture that another asked about earlier, without the first fifth of all."""
    seen: set[bytes] = set()
    known: list[bool] = []
    for request in asked:
        for turn in range(request.turns):
            known.append(turn > 0 or seen.issuperset(request.pictures))
        seen.update(request.pictures)
    counted = known[len(known) // 5 :]
    return sum(counted) / max(1, len(counted))


def _compare(preset: str, question: Question, habits: Habits) -> Report:
    load = _Load(question, conversations(question.requests, habits, Random(f"{question.seed} requests")))
    goodput = {name: load.goodput(name) for name in dict.fromkeys((*question.strategies, ORACLE))}
    best = goodput[ORACLE]
    common = COMMON * best
    rows: list[tuple[Cell, ...]] = []
    curves: dict[str, list[float]] = {}
    for name in question.strategies:
        done = load.jobs(name, common) if common else []
        curves[name] = first = [job.to_first_token for job in done]
        rows.append(
            (
                name,
                binding(name),
                goodput[name],
                100 * goodput[name] / best if best else math.nan,
                sum(first) / len(first) if first else math.nan,
                percentile(first, 99),
                *_hits(done),
            )
        )
    return Report(
        preset=preset,
        seed=question.seed,
        requests=question.requests,
        columns=(
            "strategy",
            "waits_at",
            "goodput",
            "of_oracle_percent",
            "first_token_mean",
            "first_token_p99",
            "pictures_hit_percent",
            "prompt_hit_percent",
        ),
        rows=rows,
        notes=(
            f"4 equal workers of 16 slots, each with room for a quarter of {REUSE.pool} pictures, as features and as "
            f"prompt. Goodput: the most requests a second of which 99 % see their first token within {objective():.2f} "
            "s, five times what it takes on an idle fleet that does not know the picture.",
            f"The columns to the right: at {common:.2f} requests a second, {COMMON:.0%} of the oracle's goodput. Hit: "
            "of pictures and prompt tokens asked about, those that a worker had at hand. Seconds.",
            f"{100 * seen_before(load.asked):.0f} % of the requests that count were about a picture seen before.",
        ),
        curves=curves,
        curve_label=f"time to first token at {common:.2f} requests a second",
    )


def _hits(done: Sequence[Job]) -> tuple[float, float]:
    """Per cent of the pictures, and of the prompt tokens, that the workers had at hand."""
    if not done:
        return math.nan, math.nan
    needs = [job.need for job in done if job.need is not None]
    pictures, tokens = sum(need[0] for need in needs), sum(need[1] for need in needs)
    asked = sum(len(job.request.pictures) for job in done)
    return 100 * (1 - pictures / asked), 100 * (1 - tokens / sum(job.request.prompt for job in done))
