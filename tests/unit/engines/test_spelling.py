"""The bytes of an answer's tokens, joined, are the answer's."""

import pytest

from llava_grpc.engines.spelling import byte_alphabet, speller
from tests.unit.engines.test_text import BYTE_LEVEL, SENTENCEPIECE, SENTENCES


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte-level", "sentencepiece"])
@pytest.mark.parametrize("sentence", SENTENCES)
def test_bytes_joined_are_the_text(tokenizer, sentence):
    spell = speller(tokenizer)
    ids = tokenizer.encode(sentence, add_special_tokens=False).ids
    assert b"".join(map(spell, ids)).decode().lstrip(" ") == sentence


def test_special_tokens_are_named_and_unknown_ones_are_nothing():
    spell = speller(BYTE_LEVEL)
    assert spell(BYTE_LEVEL.token_to_id("</s>")) == b"</s>"
    assert spell(10**6) == b""


def test_the_alphabet_has_every_byte_once():
    assert sorted(byte_alphabet().values()) == list(range(256))
    assert len(byte_alphabet()) == 256
    assert byte_alphabet()["Ġ"] == 0x20
