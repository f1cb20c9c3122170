"""Protobuf messages to values of `core` and back. The only module that sees both, beside `demand`.

What comes from outside is checked by the values themselves as they are made; errors say which part is wrong.
"""

from __future__ import annotations

import math

from google.protobuf.duration_pb2 import Duration

from llava_grpc.core.prompt import (
    Conversation,
    GenerationRequest,
    Image,
    Priority,
    Prompt,
    RawPrompt,
    Role,
    Turn,
)
from llava_grpc.core.sampling import Sampling
from llava_grpc.core.stream import (
    AlternativeToken,
    Delta,
    Event,
    Fingerprint,
    Finished,
    FinishReason,
    ModelCard,
    Queued,
    Started,
    Timings,
    TokenLogprob,
    Usage,
)
from llava_grpc.errors import (
    ImageInvalidError,
    ImageUriDisabledError,
    PromptInvalidError,
    SamplingInvalidError,
)
from llava_grpc.v1 import inference_pb2 as pb

_ROLES = {
    pb.ROLE_SYSTEM: Role.SYSTEM,
    pb.ROLE_USER: Role.USER,
    pb.ROLE_ASSISTANT: Role.ASSISTANT,
}
_ROLE_NUMBERS = {role: number for number, role in _ROLES.items()}
_PRIORITIES = {
    pb.PRIORITY_HIGH: Priority.HIGH,
    pb.PRIORITY_NORMAL: Priority.NORMAL,
    pb.PRIORITY_LOW: Priority.LOW,
}
_PRIORITY_NUMBERS = {priority: number for number, priority in _PRIORITIES.items()}
_REASONS = {
    pb.FINISH_REASON_STOP: FinishReason.STOP,
    pb.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    pb.FINISH_REASON_CANCELLED: FinishReason.CANCELLED,
}
_REASON_NUMBERS = {reason: number for number, reason in _REASONS.items()}


# ---------------------------------------------------------------------------------------------- requests, from outside


def request_from_pb(message: pb.GenerateRequest) -> GenerationRequest:
    """The request as a value.

    Raises:
        InvalidRequestError: whatever is wrong with it that can be seen without the model.
    """
    return GenerationRequest(
        request_id=message.request_id,
        model=message.model,
        prompt=_prompt_from_pb(message),
        sampling=sampling_from_pb(message.sampling),
        attempt=message.attempt,
        emitted_token_ids=tuple(message.emitted_token_ids),
        priority=priority_from_pb(message.priority),
        tenant=message.tenant,
        begun=fingerprint_from_pb(message.begun) if message.HasField("begun") else None,
    )


def priority_from_pb(number: int) -> Priority:
    """The class; NORMAL where none is set, or one that this release does not know."""
    return _PRIORITIES.get(number, Priority.NORMAL)  # type: ignore[call-overload, no-any-return]


def priority_to_pb(priority: Priority) -> pb.Priority.ValueType:
    """Its number on the wire."""
    return _PRIORITY_NUMBERS[priority]


def _prompt_from_pb(message: pb.GenerateRequest) -> Prompt:
    match message.WhichOneof("prompt"):
        case "conversation":
            return Conversation(tuple(_turn_from_pb(turn) for turn in message.conversation.turns))
        case "raw":
            return RawPrompt(message.raw.text, tuple(_image_from_pb(image) for image in message.raw.images))
        case _:
            raise PromptInvalidError("the request has no prompt", remedy="Set conversation or raw")


def _turn_from_pb(turn: pb.Turn) -> Turn:
    role = _ROLES.get(turn.role)
    if role is None:
        raise PromptInvalidError(
            f"unknown role {turn.role}", remedy="Use ROLE_SYSTEM (1), ROLE_USER (2) or ROLE_ASSISTANT (3)"
        )
    return Turn(role, tuple(_part_from_pb(part) for part in turn.parts))


def _part_from_pb(part: pb.Part) -> str | Image:
    match part.WhichOneof("part"):
        case "text":
            return part.text
        case "image":
            return _image_from_pb(part.image)
        case _:
            raise PromptInvalidError("a part is empty", remedy="Give it text or a picture")


def _image_from_pb(image: pb.Image) -> Image:
    match image.WhichOneof("source"):
        case "data":
            if not image.data:
                raise ImageInvalidError("a picture has no bytes")
            return Image(data=image.data)
        case "sha256":
            return Image(sha256=image.sha256)
        case "uri":
            raise ImageUriDisabledError("pictures by address are not fetched here")
        case _:
            raise ImageInvalidError("a picture has neither bytes nor digest")


def sampling_from_pb(message: pb.SamplingParams) -> Sampling:
    """The options, defaults filled in.

    Raises:
        SamplingInvalidError: one is outside its range.
    """
    if message.HasField("max_new_tokens") and message.max_new_tokens == 0:
        raise SamplingInvalidError("max_new_tokens is 0", remedy="Use at least 1")
    defaults = Sampling()
    return Sampling(
        temperature=_exact(message.temperature) if message.HasField("temperature") else defaults.temperature,
        top_p=_exact(message.top_p) if message.HasField("top_p") else defaults.top_p,
        top_k=message.top_k,
        max_new_tokens=message.max_new_tokens if message.HasField("max_new_tokens") else None,
        seed=message.seed if message.HasField("seed") else None,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        min_p=_exact(message.min_p),
        repetition_penalty=(
            _exact(message.repetition_penalty)
            if message.HasField("repetition_penalty")
            else defaults.repetition_penalty
        ),
        presence_penalty=_exact(message.presence_penalty),
        frequency_penalty=_exact(message.frequency_penalty),
        logit_bias=tuple((token_id, _exact(bias)) for token_id, bias in sorted(message.logit_bias.items())),
        min_new_tokens=message.min_new_tokens,
        ignore_eos=message.ignore_eos,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
    )


def _exact(number: float) -> float:
    """A float32 from the wire as the decimal that was meant: 0.7, not 0.699999988079071."""
    return float(f"{number:.7g}") if math.isfinite(number) else number


# --------------------------------------------------------------------------------------------- requests, to the outside


def request_to_pb(request: GenerationRequest) -> pb.GenerateRequest:
    """The request as a message."""
    message = pb.GenerateRequest(
        request_id=request.request_id,
        model=request.model,
        sampling=sampling_to_pb(request.sampling),
        attempt=request.attempt,
        emitted_token_ids=request.emitted_token_ids,
        priority=_PRIORITY_NUMBERS[request.priority],
        tenant=request.tenant,
        begun=None if request.begun is None else fingerprint_to_pb(request.begun),
    )
    match request.prompt:
        case Conversation(turns):
            message.conversation.SetInParent()
            for turn in turns:
                parts = [
                    pb.Part(text=part) if isinstance(part, str) else pb.Part(image=_image_to_pb(part))
                    for part in turn.parts
                ]
                message.conversation.turns.append(pb.Turn(role=_ROLE_NUMBERS[turn.role], parts=parts))
        case RawPrompt(text, images):
            message.raw.text = text
            message.raw.images.extend(_image_to_pb(image) for image in images)
    return message


def _image_to_pb(image: Image) -> pb.Image:
    return pb.Image(data=image.data) if image.data else pb.Image(sha256=image.sha256)


def sampling_to_pb(sampling: Sampling) -> pb.SamplingParams:
    """The options as a message, with every value that is set."""
    return pb.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_new_tokens=sampling.max_new_tokens,
        seed=sampling.seed,
        stop=sampling.stop,
        stop_token_ids=sampling.stop_token_ids,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias),
        min_new_tokens=sampling.min_new_tokens,
        ignore_eos=sampling.ignore_eos,
        logprobs=sampling.logprobs,
    )


# ------------------------------------------------------------------------------------------------------------- streams


def event_to_pb(event: Event) -> pb.GenerateResponse:
    """One frame."""
    match event:
        case Delta(text, token_ids, end_offset, logprobs):
            delta = pb.Delta(text=[text], token_ids=token_ids, end_offset=end_offset)
            if logprobs:
                delta.logprobs.extend(map(_logprob_to_pb, logprobs))
            return pb.GenerateResponse(delta=delta)
        case Queued(position, estimated_wait):
            wait = None if estimated_wait is None else duration_to_pb(estimated_wait)
            return pb.GenerateResponse(queued=pb.Queued(position=position, estimated_wait=wait))
        case Started():
            return pb.GenerateResponse(
                started=pb.Started(
                    request_id=event.request_id,
                    model=event.model,
                    seed=event.seed,
                    fingerprint=fingerprint_to_pb(event.fingerprint),
                    worker_address=event.worker_address,
                    attempt=event.attempt,
                )
            )
        case Finished():
            usage, timings = event.usage, event.timings
            return pb.GenerateResponse(
                finished=pb.Finished(
                    reason=_REASON_NUMBERS[event.reason],
                    usage=pb.Usage(
                        prompt_tokens=usage.prompt_tokens,
                        image_tokens=usage.image_tokens,
                        completion_tokens=usage.completion_tokens,
                    ),
                    timings=pb.Timings(
                        queue=duration_to_pb(timings.queue),
                        first_token=duration_to_pb(timings.first_token),
                        total=duration_to_pb(timings.total),
                    ),
                    stop_sequence=event.stop_sequence,
                    resumes=event.resumes,
                )
            )


def event_from_pb(message: pb.GenerateResponse) -> Event | None:
    """One frame; None for a kind that this release does not know."""
    match message.WhichOneof("event"):
        case "delta":
            delta = message.delta
            logprobs = tuple(map(_logprob_from_pb, delta.logprobs))
            return Delta("".join(delta.text), tuple(delta.token_ids), delta.end_offset, logprobs)
        case "started":
            started = message.started
            return Started(
                request_id=started.request_id,
                model=started.model,
                seed=started.seed,
                fingerprint=fingerprint_from_pb(started.fingerprint),
                worker_address=started.worker_address,
                attempt=started.attempt,
            )
        case "queued":
            queued = message.queued
            known = queued.HasField("estimated_wait")
            return Queued(queued.position, duration_from_pb(queued.estimated_wait) if known else None)
        case "finished":
            finished = message.finished
            return Finished(
                reason=_REASONS.get(finished.reason, FinishReason.STOP),
                usage=Usage(
                    finished.usage.prompt_tokens, finished.usage.image_tokens, finished.usage.completion_tokens
                ),
                timings=Timings(
                    duration_from_pb(finished.timings.queue),
                    duration_from_pb(finished.timings.first_token),
                    duration_from_pb(finished.timings.total),
                ),
                stop_sequence=finished.stop_sequence,
                resumes=finished.resumes,
            )
        case _:
            return None


def _logprob_to_pb(entry: TokenLogprob) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token_id=entry.token_id,
        logprob=entry.logprob,
        utf8=entry.utf8,
        top=[pb.AlternativeToken(token_id=one.token_id, logprob=one.logprob, utf8=one.utf8) for one in entry.top],
    )


def _logprob_from_pb(entry: pb.TokenLogprob) -> TokenLogprob:
    top = tuple(AlternativeToken(one.token_id, one.logprob, one.utf8) for one in entry.top)
    return TokenLogprob(entry.token_id, entry.logprob, entry.utf8, top)


# -------------------------------------------------------------------------------------------------------------- models


def card_to_pb(card: ModelCard, workers: int = 1, waiting: int = 0) -> pb.Model:
    """A model as listed; `workers` serve it, `waiting` requests wait for it."""
    return pb.Model(
        name=card.name,
        aliases=card.aliases,
        sees_images=card.sees_images,
        context_tokens=card.context_tokens,
        workers=workers,
        waiting=waiting,
        fingerprint=fingerprint_to_pb(card.fingerprint),
    )


def card_from_pb(model: pb.Model) -> ModelCard:
    """A model as registered."""
    return ModelCard(
        name=model.name,
        aliases=tuple(model.aliases),
        sees_images=model.sees_images,
        context_tokens=model.context_tokens,
        fingerprint=fingerprint_from_pb(model.fingerprint),
    )


def fingerprint_to_pb(fingerprint: Fingerprint) -> pb.Fingerprint:
    """The fingerprint as a message."""
    return pb.Fingerprint(
        weights=fingerprint.weights,
        dtype=fingerprint.dtype,
        quantization=fingerprint.quantization,
        tokenizer=fingerprint.tokenizer,
        engine=fingerprint.engine,
    )


def fingerprint_from_pb(message: pb.Fingerprint) -> Fingerprint:
    """The fingerprint as a value."""
    return Fingerprint(message.weights, message.dtype, message.quantization, message.tokenizer, message.engine)


def duration_to_pb(seconds: float) -> Duration:
    """Seconds as a Duration."""
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def duration_from_pb(duration: Duration) -> float:
    """A Duration in seconds."""
    return duration.ToNanoseconds() / 1e9
