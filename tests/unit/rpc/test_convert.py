"""Messages and values say the same, and frames have the shape that the proxy relies on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_grpc.core.prompt import Conversation, GenerationRequest, Image, RawPrompt, Role, Sampling, Turn
from llava_grpc.core.stream import (
    AlternativeToken,
    Delta,
    Event,
    Fingerprint,
    Finished,
    FinishReason,
    ModelCard,
    Started,
    Timings,
    TokenLogprob,
    Usage,
)
from llava_grpc.errors import ImageInvalidError, ImageUriDisabledError, PromptInvalidError, SamplingInvalidError
from llava_grpc.rpc.convert import (
    card_from_pb,
    card_to_pb,
    event_from_pb,
    event_to_pb,
    request_from_pb,
    request_to_pb,
    sampling_from_pb,
)
from llava_grpc.v1 import inference_pb2 as pb

FINGERPRINT = Fingerprint("w", "float32", "none", "t", "echo 1")
EVENTS: list[Event] = [
    Started("r", "m", 2**64 - 1, FINGERPRINT, "h:1", 2),
    Delta("猫🌵", (1, 2**32 - 1), 7),
    Delta("a", (1,), 8, (TokenLogprob(1, -0.5, b"a", (AlternativeToken(1, -0.5, b"a"), AlternativeToken(9, -8.25))),)),
    Finished(FinishReason.STOP, Usage(3, 2, 1), Timings(0.25, 0.5, 1.5), "END"),
]
CONVERSATION = Conversation(
    (
        Turn(Role.SYSTEM, ("be kind",)),
        Turn(Role.USER, (Image(data=b"png"), "what is it?")),
        Turn(Role.ASSISTANT, ("a cat",)),
        Turn(Role.USER, ("sure?", Image(sha256=b"d" * 32))),
    )
)


@pytest.mark.parametrize("prompt", [CONVERSATION, RawPrompt("<image> it is", (Image(data=b"png"),))])
def test_a_request_comes_back_as_it_went(prompt: Conversation | RawPrompt):
    request = GenerationRequest(
        request_id="r",
        model="m",
        prompt=prompt,
        sampling=Sampling(
            temperature=0.7,
            top_p=0.9,
            top_k=5,
            max_new_tokens=9,
            seed=3,
            stop=("x",),
            stop_token_ids=(1,),
            min_p=0.05,
            repetition_penalty=1.1,
            presence_penalty=-0.3,
            frequency_penalty=1.7,
            logit_bias=((2, -100.0), (5, 0.1)),
            min_new_tokens=4,
            ignore_eos=True,
            logprobs=0,
        ),
        attempt=1,
        emitted_token_ids=(4, 5),
    )
    assert request_from_pb(pb.GenerateRequest.FromString(request_to_pb(request).SerializeToString())) == request


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_a_frame_comes_back_as_it_went(event: Event):
    assert event_from_pb(pb.GenerateResponse.FromString(event_to_pb(event).SerializeToString())) == event


def test_the_first_byte_of_a_frame_tells_its_kind():
    assert [event_to_pb(event).SerializeToString()[0] for event in EVENTS] == [0x0A, 0x12, 0x12, 0x1A]


_TOKEN_IDS = st.lists(st.integers(0, 2**32 - 1), min_size=1).map(tuple)
_FLOATS = st.floats(-100, 0, width=32)
_ALTERNATIVES = st.lists(st.builds(AlternativeToken, st.integers(0, 2**32 - 1), _FLOATS, st.binary()), max_size=2)
_LOGPROBS = st.builds(TokenLogprob, st.integers(0, 2**32 - 1), _FLOATS, st.binary(), _ALTERNATIVES.map(tuple))
_DELTAS = st.builds(Delta, st.text(), _TOKEN_IDS, st.integers(1, 2**31), st.lists(_LOGPROBS, max_size=3).map(tuple))


@given(_DELTAS, _DELTAS)
def test_adjacent_deltas_joined_byte_by_byte_are_one_delta(first: Delta, second: Delta):
    joined = event_to_pb(first).SerializeToString() + event_to_pb(second).SerializeToString()
    assert event_from_pb(pb.GenerateResponse.FromString(joined)) == first.joined(second)


def test_a_request_completed_behind_merges():
    given_ = request_to_pb(GenerationRequest(request_id="", model="", prompt=CONVERSATION)).SerializeToString()
    addition = pb.GenerateRequest(request_id="r", model="m", attempt=2, sampling=pb.SamplingParams(seed=7))
    merged = request_from_pb(pb.GenerateRequest.FromString(given_ + addition.SerializeToString()))
    assert (merged.request_id, merged.model, merged.attempt, merged.sampling.seed) == ("r", "m", 2, 7)
    assert merged.prompt == CONVERSATION


def test_what_is_not_set_takes_its_default_and_zero_is_not_unset():
    assert sampling_from_pb(pb.SamplingParams()) == Sampling()
    assert sampling_from_pb(pb.SamplingParams(seed=0)).seed == 0
    assert sampling_from_pb(pb.SamplingParams(temperature=0.7)).temperature == 0.7, "the decimal that was meant"
    with pytest.raises(SamplingInvalidError):
        sampling_from_pb(pb.SamplingParams(max_new_tokens=0))
    assert sampling_from_pb(pb.SamplingParams(logprobs=0)).logprobs == 0
    with pytest.raises(SamplingInvalidError):
        sampling_from_pb(pb.SamplingParams(top_p=0.0))
    with pytest.raises(SamplingInvalidError):
        sampling_from_pb(pb.SamplingParams(repetition_penalty=0.0))


def _user(part: pb.Part) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        conversation=pb.Conversation(turns=[pb.Turn(role=pb.ROLE_USER, parts=[part])]),
    )


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (pb.GenerateRequest(), PromptInvalidError),
        (_user(pb.Part()), PromptInvalidError),
        (_user(pb.Part(image=pb.Image())), ImageInvalidError),
        (_user(pb.Part(image=pb.Image(data=b""))), ImageInvalidError),
        (_user(pb.Part(image=pb.Image(uri="file:///etc/passwd"))), ImageUriDisabledError),
    ],
)
def test_what_is_missing_or_off_is_said(message: pb.GenerateRequest, error: type[Exception]):
    with pytest.raises(error):
        request_from_pb(message)


def test_a_card_comes_back_as_it_went():
    card = ModelCard("m", ("a", "b"), False, 77, FINGERPRINT)
    assert card_from_pb(card_to_pb(card, workers=3)) == card
