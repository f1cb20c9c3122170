"""Values that exist are well-formed."""

from typing import Any

import pytest

from llava_grpc.core.prompt import Conversation, GenerationRequest, Image, RawPrompt, Role, Turn
from llava_grpc.errors import (
    ImageCountError,
    ImageInvalidError,
    LlavaGrpcError,
    PromptInvalidError,
    RequestIdInvalidError,
)

CAT = Image(data=b"cat")
HELLO = Turn(Role.USER, ("hello",))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Conversation(()), PromptInvalidError),
        (lambda: Conversation((HELLO, Turn(Role.ASSISTANT, ("hi",)))), PromptInvalidError),
        (lambda: Conversation((HELLO, Turn(Role.SYSTEM, ("be kind",)), HELLO)), PromptInvalidError),
        (lambda: Turn(Role.USER, ()), PromptInvalidError),
        (lambda: Turn(Role.ASSISTANT, (CAT,)), PromptInvalidError),
        (lambda: RawPrompt(""), PromptInvalidError),
        (lambda: RawPrompt("<image> and <image>", (CAT,)), ImageCountError),
        (lambda: RawPrompt("no placeholder", (CAT,)), ImageCountError),
        (lambda: Image(), ImageInvalidError),
        (lambda: Image(data=b"x", sha256=b"x" * 32), ImageInvalidError),
        (lambda: Image(sha256=b"short"), ImageInvalidError),
        (lambda: GenerationRequest(request_id="a b", model="", prompt=RawPrompt("x")), RequestIdInvalidError),
        (lambda: GenerationRequest(request_id="x" * 129, model="", prompt=RawPrompt("x")), RequestIdInvalidError),
    ],
)
def test_malformed_prompts_are_refused(make: Any, error: type[LlavaGrpcError]):
    with pytest.raises(error):
        make()


def test_raw_parts_alternate_text_and_pictures():
    dog = Image(data=b"dog")
    assert list(RawPrompt("<image>\nfirst<image>", (CAT, dog)).parts()) == [CAT, "\nfirst", dog]


def test_pictures_of_a_conversation_come_in_order():
    dog = Image(data=b"dog")
    turns = (Turn(Role.USER, (CAT, "?")), Turn(Role.ASSISTANT, ("a cat",)), Turn(Role.USER, ("and", dog)))
    assert Conversation(turns).images == (CAT, dog)


def test_a_seed_is_added_only_where_none_is():
    request = GenerationRequest(request_id="r", model="", prompt=RawPrompt("x"))
    assert request.with_seed(7).sampling.seed == 7
    assert request.with_seed(7).with_seed(8).sampling.seed == 7
