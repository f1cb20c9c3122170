"""From OpenAI's shape to the fabric's requests."""

import base64
from typing import Any

import pytest
from pydantic import ValidationError

from llava_grpc.config import GatewaySettings
from llava_grpc.core.prompt import Conversation, GenerationRequest, Image, Priority, RawPrompt, Role
from llava_grpc.errors import ImageInvalidError, PromptInvalidError, SamplingInvalidError
from llava_grpc.gateway.pictures import Pictures
from llava_grpc.gateway.problems import ApiError
from llava_grpc.gateway.prompting import chat_requests, completion_requests
from llava_grpc.gateway.schema import IGNORED, REFUSED, ChatRequest, CompletionRequest

HELLO = [{"role": "user", "content": "hello"}]


async def chat(**body: Any) -> list[GenerationRequest]:
    pictures = Pictures(GatewaySettings(port=0))
    try:
        return await chat_requests(ChatRequest.model_validate({"messages": HELLO, **body}), pictures, "name")
    finally:
        await pictures.close()


def completion(**body: Any) -> list[GenerationRequest]:
    return completion_requests(CompletionRequest.model_validate({"prompt": "Once", **body}), "name")


async def test_a_plain_question_has_openais_defaults():
    [request] = await chat()
    assert request.request_id == "name"
    assert request.prompt.turns[0].parts == ("hello",)  # type: ignore[union-attr]
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.seed) == (1.0, 1.0, None)
    assert request.sampling.max_new_tokens is None


async def test_roles_parts_and_pictures_keep_their_order():
    picture = base64.b64encode(b"a picture").decode()
    [request] = await chat(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [{"type": "text", "text": "And kind."}]},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look:"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}", "detail": "low"}},
                    {"type": "text", "text": "What is it?"},
                ],
            },
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": "Sure?"},
        ]
    )
    assert isinstance(request.prompt, Conversation)
    assert [(turn.role, turn.parts) for turn in request.prompt.turns] == [
        (Role.SYSTEM, ("Be brief.\n\nAnd kind.",)),
        (Role.USER, ("Look:", Image(data=b"a picture"), "What is it?")),
        (Role.ASSISTANT, ("A cat.",)),
        (Role.USER, ("Sure?",)),
    ]


async def test_every_option_arrives():
    [request] = await chat(
        model="llava",
        max_tokens=3,
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        seed=-1,
        stop=["a", "b"],
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.1,
        logit_bias={"7": -100, "3": 2.5},
        min_tokens=2,
        stop_token_ids=[9],
        ignore_eos=True,
        logprobs=True,
        top_logprobs=4,
        user="somebody",
        priority="high",
    )
    sampling = request.sampling
    assert (request.model, request.tenant, request.priority) == ("llava", "somebody", Priority.HIGH)
    assert (sampling.max_new_tokens, sampling.min_new_tokens) == (7, 2)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 5, 0.1)
    assert sampling.seed == 2**64 - 1
    assert (sampling.stop, sampling.stop_token_ids, sampling.ignore_eos) == (("a", "b"), (9,), True)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.5, -0.5, 1.1)
    assert sampling.logit_bias == ((3, 2.5), (7, -100.0))
    assert sampling.logprobs == 4


async def test_each_choice_has_a_name_and_a_seed_of_its_own_and_the_first_the_one_asked_for():
    requests = await chat(n=3, seed=5)
    assert [request.request_id for request in requests] == ["name-0", "name-1", "name-2"]
    seeds = [request.sampling.seed for request in requests]
    assert seeds[0] == 5
    assert len(set(seeds)) == 3
    assert [request.sampling.seed for request in await chat(n=3, seed=5)] == seeds


def test_prompts_and_choices_of_a_completion_come_in_order():
    requests = completion(prompt=["a", "b"], n=2, seed=1)
    assert [request.prompt for request in requests] == [RawPrompt("a"), RawPrompt("a"), RawPrompt("b"), RawPrompt("b")]
    assert requests[0].sampling.seed == requests[2].sampling.seed == 1


@pytest.mark.parametrize("name", IGNORED)
async def test_what_is_ignored_on_purpose_is_taken(name: str):
    assert await chat(**{name: "whatever"})


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_not_served_is_refused_unless_it_changes_nothing(name: str):
    with pytest.raises(ValidationError, match="not served"):
        await chat(**{name: [{"type": "function"}]})
    for harmless in (None, *REFUSED[name]):
        assert await chat(**{name: harmless})


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        {"messages": "hello"},
        {"temperature": "hot"},
        {"n": 0},
        {"n": 17},
        {"top_logprobs": 21, "logprobs": True},
        {"nonsense": 1},
        {"stream_options": {"include_usage": True, "more": 1}},
    ],
)
async def test_bodies_of_the_wrong_shape_are_refused(body: dict[str, Any]):
    with pytest.raises(ValidationError):
        await chat(**body)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"top_logprobs": 2}, ApiError),
        ({"logit_bias": {"x": 1.0}}, ApiError),
        ({"messages": [{"role": "user", "content": ""}]}, ApiError),
        ({"messages": [{"role": "user", "content": []}]}, ApiError),
        ({"temperature": -1}, SamplingInvalidError),
        ({"stop": [""]}, SamplingInvalidError),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, PromptInvalidError),
        ({"messages": [*HELLO, {"role": "system", "content": "x"}, *HELLO]}, PromptInvalidError),
    ],
)
async def test_what_makes_no_sense_has_its_own_error(body: dict[str, Any], error: type[Exception]):
    with pytest.raises(error):
        await chat(**body)


async def test_a_picture_in_an_answer_is_refused():
    part = {"type": "image_url", "image_url": {"url": "data:,x"}}
    with pytest.raises(PromptInvalidError):
        await chat(messages=[*HELLO, {"role": "assistant", "content": [part]}, *HELLO])


async def test_a_picture_that_is_no_url_is_refused():
    part = {"type": "image_url", "image_url": {"url": "/etc/passwd"}}
    with pytest.raises(ImageInvalidError):
        await chat(messages=[{"role": "user", "content": [part]}])
