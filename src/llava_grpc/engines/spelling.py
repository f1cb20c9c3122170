"""The bytes of single tokens. Pure but for the tokenizer.

A tokenizer that decodes one token alone does not give its text: half a character becomes a replacement character, and
the space before a word is dropped. Its bytes are what can be joined: those of an answer's tokens are the answer's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from tokenizers import Tokenizer

from llava_grpc.engines.logprobs import Spell

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def speller(tokenizer: Tokenizer) -> Spell:
    """The spelling of `tokenizer`'s tokens: of special ones their name, of ids that it does not know nothing."""
    added = {id_: token.content for id_, token in tokenizer.get_added_tokens_decoder().items()}
    kinds = set(_kinds(json.loads(tokenizer.decoder.__getstate__()))) if tokenizer.decoder else set()
    alphabet = byte_alphabet() if "ByteLevel" in kinds else None
    bytes_fall_back = "ByteFallback" in kinds

    @cache
    def spell(token_id: int) -> bytes:
        token = added.get(token_id)
        if token is not None:
            return token.encode()
        token = tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if alphabet is not None and all(character in alphabet for character in token):
            return bytes(alphabet[character] for character in token)
        if bytes_fall_back and (byte := _BYTE.fullmatch(token)):
            return bytes.fromhex(byte[1])
        once: str = tokenizer.decode([token_id])
        twice: str = tokenizer.decode([token_id, token_id])
        return twice[len(once) :].encode()  # with the space that only the first one loses

    return spell


def _kinds(decoder: dict[str, Any]) -> Iterator[str]:
    yield decoder["type"]
    for part in decoder.get("decoders", ()):
        yield from _kinds(part)


@cache
def byte_alphabet() -> dict[str, int]:
    """The characters in which byte-level vocabularies (GPT-2's, Radford et al. 2019) write bytes.

    Printable ones stand for themselves, the others for the characters from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}
