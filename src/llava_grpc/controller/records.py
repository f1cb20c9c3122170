"""The dispatcher's records as messages: what `Explain` answers."""

from __future__ import annotations

from llava_grpc.core.history import Decision, Record
from llava_grpc.rpc.convert import duration_to_pb, priority_to_pb
from llava_grpc.v1 import explain_pb2 as pb


def record_to_pb(record: Record, epoch: float) -> pb.RequestRecord:
    """A record as it stands. `epoch`: the wall clock's seconds when the records' own clock was at 0."""
    entry = record.entry
    message = pb.RequestRecord(
        request_id=entry.request_id,
        model=record.model,
        tenant=entry.tenant,
        priority=priority_to_pb(entry.priority),
        pieces=[pb.PromptPiece(key=piece.key, tokens=piece.tokens) for piece in entry.demand.pieces],
        pictures=entry.demand.pictures,
        most_answer_tokens=entry.demand.most_answer_tokens,
        ahead=record.ahead,
        decisions=[_decision_to_pb(decision, entry.arrived) for decision in record.decisions],
        outcome=record.outcome,
        prompt_tokens=record.prompt_tokens,
        answer_tokens=record.answer_tokens,
    )
    message.arrived_at.FromNanoseconds(round((epoch + entry.arrived) * 1e9))
    for name, at in (("deadline", entry.deadline), ("first_token", record.first_token_at), ("ended", record.ended_at)):
        if at is not None:
            getattr(message, name).CopyFrom(duration_to_pb(at - entry.arrived))
    return message


def _decision_to_pb(decision: Decision, arrived: float) -> pb.Decision:
    return pb.Decision(
        after=duration_to_pb(decision.at - arrived),
        strategy=decision.strategy,
        candidates=decision.candidates,
        address=decision.address,
        unit=decision.pick.unit,
        considered=[
            pb.Candidate(
                address=one.address,
                score=one.score,
                speed=one.speed,
                queue=one.queue,
                room=one.room,
                unread_tokens=one.unread,
                held_tokens=one.held_tokens,
                held_pictures=one.held_pictures,
            )
            for one in decision.considered
        ],
    )
