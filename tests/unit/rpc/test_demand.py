"""What dispatch is told of a prompt: the same beginnings get the same names."""

import hashlib

from llava_grpc.rpc.demand import TOKENS_PER_PICTURE, demand_of
from llava_grpc.v1 import inference_pb2 as pb

PICTURE = b"not decoded here"


def text(content: str) -> pb.Part:
    return pb.Part(text=content)


def picture(data: bytes = PICTURE) -> pb.Part:
    return pb.Part(image=pb.Image(data=data))


def conversation(*turns: pb.Turn, model: str = "m") -> pb.GenerateRequest:
    return pb.GenerateRequest(model=model, conversation=pb.Conversation(turns=turns))


def user(*parts: pb.Part) -> pb.Turn:
    return pb.Turn(role=pb.ROLE_USER, parts=parts)


def assistant(content: str) -> pb.Turn:
    return pb.Turn(role=pb.ROLE_ASSISTANT, parts=[text(content)])


def test_a_later_turn_begins_with_the_earlier_ones():
    first = demand_of(conversation(user(picture(), text("What is it?"))))
    second = demand_of(conversation(user(picture(), text("What is it?")), assistant("A cat."), user(text("Sure?"))))
    assert second.pieces[:1] == first.pieces
    assert len(second.pieces) == 3
    assert first.pictures == second.pictures == (hashlib.sha256(PICTURE).digest(),)
    assert first.prompt_tokens == TOKENS_PER_PICTURE + 3


def test_another_picture_role_order_or_model_is_another_beginning():
    demands = [
        demand_of(message)
        for message in (
            conversation(user(picture(), text("What is it?"))),
            conversation(user(picture(b"another"), text("What is it?"))),
            conversation(user(text("What is it?"), picture())),
            conversation(pb.Turn(role=pb.ROLE_SYSTEM, parts=[picture(), text("What is it?")])),
            conversation(user(picture(), text("What is it?")), model="n"),
        )
    ]
    assert len({demand.pieces[0].key for demand in demands}) == len(demands)


def test_a_picture_by_digest_is_the_picture_by_value():
    by_value = demand_of(conversation(user(picture())))
    by_digest = demand_of(conversation(user(pb.Part(image=pb.Image(sha256=hashlib.sha256(PICTURE).digest())))))
    assert by_value == by_digest


def test_raw_prompts_share_beginnings_in_blocks():
    def raw(content: str) -> pb.GenerateRequest:
        return pb.GenerateRequest(raw=pb.RawPrompt(text=content, images=[pb.Image(data=PICTURE)]))

    one, other = demand_of(raw("<image>" + "x" * 3000)), demand_of(raw("<image>" + "x" * 2500 + "y"))
    shared = [a == b for a, b in zip(one.pieces, other.pieces, strict=True)]
    assert shared == [True, True, True, False], "the picture and two whole blocks"


def test_the_longest_answer_is_what_was_asked_for_or_the_default():
    message = conversation(user(text("Hello")))
    assert demand_of(message).most_answer_tokens == 256
    message.sampling.max_new_tokens = 7
    assert demand_of(message).most_answer_tokens == 7


def test_nonsense_is_no_error_here():
    assert demand_of(pb.GenerateRequest()).pieces == ()
    assert len(demand_of(conversation(pb.Turn(), user(pb.Part()))).pieces) == 2
