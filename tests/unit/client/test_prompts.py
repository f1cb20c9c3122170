"""From what people write to a request."""

from typing import Any

import pytest

from llava_grpc import errors
from llava_grpc.client.prompts import assistant, build_prompt, build_request, split, system, user
from llava_grpc.core.prompt import Conversation, Image, RawPrompt, Role, Turn

A, B = Image(data=b"a"), Image(data=b"b")


def prompt(text: Any = None, images: Any = (), *, system_text: str | None = None, raw: str | None = None) -> Any:
    return build_prompt(text, images, system_text, raw)


def test_a_question_is_a_turn_with_its_pictures_first():
    assert prompt("what?", [A, b"b"]) == Conversation((Turn(Role.USER, (A, B, "what?")),))


def test_instructions_are_the_first_turn():
    assert prompt("hi", system_text="be brief") == Conversation((system("be brief"), user("hi")))
    assert prompt([user("hi")], system_text="be brief") == Conversation((system("be brief"), user("hi")))


def test_turns_are_taken_as_they_are():
    turns = [system("be brief"), user("what?", A), assistant("a cat"), user("and this?", B)]
    assert prompt(turns) == prompt(Conversation(tuple(turns))) == Conversation(tuple(turns))


def test_a_raw_prompt_has_its_pictures_by_placeholder():
    assert prompt(raw="a <image> b", images=A) == RawPrompt("a <image> b", (A,))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, errors.PromptInvalidError),
        ({"text": " "}, errors.PromptInvalidError),
        ({"text": []}, errors.PromptInvalidError),
        ({"text": [assistant("hi")]}, errors.PromptInvalidError),
        ({"text": "hi", "raw": "hi"}, errors.PromptInvalidError),
        ({"raw": "hi", "system_text": "be brief"}, errors.PromptInvalidError),
        ({"raw": "hi", "images": A}, errors.ImageCountError),
        ({"raw": ""}, errors.PromptInvalidError),
        ({"text": [user("hi")], "images": A}, errors.PromptInvalidError),
        ({"text": [system("a"), user("hi")], "system_text": "b"}, errors.PromptInvalidError),
        ({"text": "half \ud800"}, errors.PromptInvalidError),
        ({"raw": "half \ud800"}, errors.PromptInvalidError),
    ],
)
def test_prompts_that_make_no_sense_are_refused_with_a_remedy(
    arguments: dict[str, Any], error: type[errors.LlavaGrpcError]
):
    with pytest.raises(error) as caught:
        prompt(**arguments)
    assert caught.value.remedy


def test_a_picture_alone_can_be_asked_about():
    assert prompt("", A).images == (A,)


def test_a_request_has_a_name_of_its_own():
    first, second = (build_request(prompt("hi")) for _ in range(2))
    assert first.request_id
    assert first.request_id != second.request_id
    assert build_request(prompt("hi"), request_id="mine").request_id == "mine"


def test_one_stop_string_need_not_be_in_a_list():
    assert build_request(prompt("hi"), stop="END").sampling.stop == ("END",)
    assert build_request(prompt("hi"), stop=["a", "b"]).sampling.stop == ("a", "b")


@pytest.mark.parametrize("options", [{"temperature": -1}, {"top_p": 0}, {"max_new_tokens": 0}, {"stop": ""}])
def test_options_out_of_range_are_refused(options: dict[str, Any]):
    with pytest.raises(errors.SamplingInvalidError):
        build_request(prompt("hi"), **options)


def test_the_timeout_is_the_calls_and_not_the_requests():
    assert split({"seed": 1, "timeout": 2.0}) == ({"seed": 1}, 2.0)
    assert split({}) == ({}, None)
