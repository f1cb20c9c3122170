"""A recorded load, offered to other strategies: the same arrivals, prompts, pictures and lengths of answers.

What `llava-grpc explain --export` has written is read here: workers, then requests, a JSON object a line. The workers
become the simulator's own, whose costs are scaled so that answers take as long, all in all, as they were recorded to
take on workers as busy. How far that is to be trusted the recording says itself: its own strategy is replayed too.

Left out: requests without an answer (nobody knows how long it would have been), workers that came or went meanwhile,
and users of the workers that went around the controller.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import pairwise
from typing import Any

from llava_grpc.config import SettingsError
from llava_grpc.core.affinity import DEFAULT_PICTURES, DEFAULT_PREFIX_TOKENS
from llava_grpc.core.demand import Piece
from llava_grpc.core.prompt import Priority
from llava_grpc.core.strategies import STRATEGIES
from llava_grpc.sim.caches import Room
from llava_grpc.sim.fleets import COSTS, binding, run, strategy_names
from llava_grpc.sim.measure import percentile
from llava_grpc.sim.questions import Question
from llava_grpc.sim.report import Cell, Report
from llava_grpc.sim.service import Costs, Spec
from llava_grpc.sim.workload import PICTURE_TOKENS, Request

RECORDED = "recorded"
"""Names the row of what really happened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What happened to a request. Seconds since it arrived; `queue`: requests on its worker as it was chosen."""

    address: str
    queue: int
    waited: float
    first_token: float
    ended: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A fleet, what it was asked, in order, and what happened to each request.."""

    model: str
    strategy: str
    fleet: tuple[Spec, ...]
    addresses: tuple[str, ...]
    requests: tuple[Request, ...]
    seen: tuple[Seen, ...]
    left_out: int

    def costs(self) -> Costs:
        """The simulator's costs, scaled to this recording."""
        specs = dict(zip(self.addresses, self.fleet, strict=True))
        recorded = modelled = 0.0
        for request, seen in zip(self.requests, self.seen, strict=True):
            spec = specs.get(seen.address)
            if spec is not None:  # its worker is still there
                recorded += seen.ended - seen.waited
                steps = (request.answer - 1) * COSTS.stepping(min(seen.queue + 1, spec.slots))
                modelled += (COSTS.reading(request.prompt) + steps) / spec.speed
        if not modelled:
            raise SettingsError("no request of the recording was answered by a worker of it; record some more")
        factor = recorded / modelled
        return Costs(**{cost.name: factor * getattr(COSTS, cost.name) for cost in fields(Costs)})


def read(lines: Iterable[str], model: str = "") -> Recording:
    """The recording; `model` names the one to replay where there are several.

    Raises:
        SettingsError: a line is not what the export writes, or nothing in it can be replayed.
    """
    workers: list[Mapping[str, Any]] = []
    records: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            [(kind, value)] = json.loads(line).items()
            {"worker": workers, "request": records}[kind].append(value)
        except (ValueError, KeyError, AttributeError):
            raise SettingsError(f"line {number} is not a worker or request of `explain --export`") from None
    try:
        return _recording(workers, records, model)
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"the recording is not of this release: {error!r}") from error


def replay(recording: Recording, question: Question) -> Report:
    """What each strategy makes of the recording.

    Raises:
        SettingsError: there is no such strategy.
    """
    costs = recording.costs()
    names = question.strategies or tuple(dict.fromkeys((recording.strategy, *STRATEGIES)))
    unknown = [name for name in names if name not in strategy_names()]
    if question.strategies and unknown:
        raise SettingsError(f"there is no strategy {unknown[0]!r}; use one of {', '.join(strategy_names())}")
    rows = [_row(RECORDED, "controller", [(one.waited, one.first_token, one.ended) for one in recording.seen])]
    curves = {RECORDED: [one.first_token for one in recording.seen]}
    for name in names:
        if name in unknown:  # somebody's own, which lives elsewhere
            continue
        done = run(
            name, recording.requests, recording.fleet, seed=question.seed, costs=costs, progress=question.progress
        )
        curves[name] = [job.to_first_token for job in done]
        rows.append(_row(name, binding(name), [(job.wait, job.to_first_token, job.response) for job in done]))
    return Report(
        preset="replay",
        seed=question.seed,
        requests=len(recording.requests),
        columns=("strategy", "waits_at", "wait_mean", "wait_p99", "first_token_p50", "first_token_p99", "answer_p99"),
        rows=rows,
        notes=(
            f"{len(recording.requests)} requests for {recording.model}, {len(recording.fleet)} workers, recorded with "
            f"{recording.strategy}; {recording.left_out} without an answer are left out. Seconds.",
            f"The simulator's costs, times {costs.step / COSTS.step:.3g}. How far {recording.strategy}'s own row is "
            "from what was recorded is how far the others may be off.",
        ),
        curves=curves,
        curve_label="time to first token",
    )


def _row(name: str, waits_at: str, times: Sequence[tuple[float, float, float]]) -> tuple[Cell, ...]:
    waits, firsts, ends = ([one[which] for one in times] for which in range(3))
    return (
        name,
        waits_at,
        sum(waits) / len(waits),
        percentile(waits, 99),
        percentile(firsts, 50),
        percentile(firsts, 99),
        percentile(ends, 99),
    )


def _recording(workers: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]], model: str) -> Recording:
    models = sorted({record["model"] for record in records})
    if not models:
        raise SettingsError("the recording holds no request")
    if not model and len(models) > 1:
        raise SettingsError(f"the recording has requests for several models; name one: {', '.join(models)}")
    model = model or models[0]
    serving = [worker for worker in workers if model in worker["models"] and worker["speed"] > 0]
    answered = sorted(
        (record for record in records if record["model"] == model and _is_answered(record)),
        key=lambda record: _arrived(record),
    )
    if not serving or not answered:
        raise SettingsError(f"the recording has no {'worker' if not serving else 'answered request'} for {model!r}")
    mean_speed = sum(worker["speed"] for worker in serving) / len(serving)
    following = _following(answered)
    begin = _arrived(answered[0])
    return Recording(
        model=model,
        strategy=answered[-1]["decisions"][-1]["strategy"],
        fleet=tuple(_spec(worker, mean_speed) for worker in serving),
        addresses=tuple(worker["address"] for worker in serving),
        requests=tuple(_request(record, begin, following) for record in answered),
        seen=tuple(_seen(record) for record in answered),
        left_out=sum(record["model"] == model for record in records) - len(answered),
    )


def _is_answered(record: Mapping[str, Any]) -> bool:
    return bool(record["outcome"] == "ok" and record["answer_tokens"] and record["decisions"])


def _arrived(record: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(record["arrived_at"]).timestamp()


def _spec(worker: Mapping[str, Any], mean_speed: float) -> Spec:
    room = Room(
        worker["cached_pictures"] or round(DEFAULT_PICTURES), worker["kv_tokens"] or round(DEFAULT_PREFIX_TOKENS)
    )
    return Spec(worker["speed"] / mean_speed, worker["slots"], room)


def _seen(record: Mapping[str, Any]) -> Seen:
    last = record["decisions"][-1]
    [queue] = [one["queue"] for one in last["considered"] if one["address"] == last["address"]]
    first = record["ended"] if record["first_token"] is None else record["first_token"]
    return Seen(address=last["address"], queue=queue, waited=last["after"], first_token=first, ended=record["ended"])


def _request(record: Mapping[str, Any], begin: float, following: Mapping[bytes, Piece]) -> Request:
    at = _arrived(record) - begin
    pieces = _pieces(record)
    pictures = tuple(bytes.fromhex(picture) for picture in record["pictures"])
    return Request(
        at,
        tenant=record["tenant"],
        priority=Priority(record["priority"]),
        prompt=sum(piece.tokens for piece in pieces) or record["prompt_tokens"],
        answer=record["answer_tokens"],
        deadline=None if record["deadline"] is None else at + record["deadline"],
        pieces=pieces,
        pictures=pictures,
        stands=_stands(pieces, len(pictures)),
        said=following.get(pieces[-1].key) if pieces else None,
    )


def _pieces(record: Mapping[str, Any]) -> tuple[Piece, ...]:
    return tuple(Piece(bytes.fromhex(piece["key"]), piece["tokens"]) for piece in record["pieces"])


def _following(records: Iterable[Mapping[str, Any]]) -> dict[bytes, Piece]:
    """By the key of a piece the one that came after it: after a prompt's last, the answer, as its conversation goes on
    from it."""
    found: dict[bytes, Piece] = {}
    for record in records:
        pieces = _pieces(record)
        found.update((one.key, other) for one, other in pairwise(pieces))
    return found


def _stands(pieces: Sequence[Piece], pictures: int) -> tuple[int, ...]:
    """In which piece each picture stands, so far as the pieces' lengths tell: in the first that is long enough."""
    places = [number for number, piece in enumerate(pieces) for _ in range(piece.tokens // PICTURE_TOKENS)]
    last = len(pieces) - 1
    return tuple(places[number] if number < len(places) else last for number in range(pictures))
