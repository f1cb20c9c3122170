"""What the echo engine answers: tokens that follow from the prompt, the seed and all tokens before them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from llava_grpc.core.prompt import Conversation, GenerationRequest, Image

VOCABULARY = 4096

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


def token_text(token_id: int) -> str:
    """The text of a token: a short word with a space before it, now and then with an emoji or a Chinese character."""
    first, second = divmod(token_id, len(_SYLLABLES))
    word = _SYLLABLES[first % len(_SYLLABLES)] + _SYLLABLES[second]
    decoration = {0: "🌵", 1: "猫"}.get(token_id % 64, "")
    return f" {word}{decoration}"


class TokenChain:
    """The answer to one request, token by token.

    The state is a 64-bit hash of prompt, seed and all tokens so far.
    """

    def __init__(self, request: GenerationRequest) -> None:
        digest = hashlib.blake2b(digest_size=8)
        for piece in pieces(request):
            digest.update(len(piece).to_bytes(8, "big"))
            digest.update(piece)
        digest.update((request.sampling.seed or 0).to_bytes(8, "big"))
        self._state = digest.digest()
        for token_id in request.emitted_token_ids:
            self._advance(token_id)

    def next(self) -> int:
        """The next token."""
        token_id = int.from_bytes(self._state[:4], "big") % VOCABULARY
        self._advance(token_id)
        return token_id

    def _advance(self, token_id: int) -> None:
        self._state = hashlib.blake2b(self._state + token_id.to_bytes(8, "big"), digest_size=8).digest()


def pieces(request: GenerationRequest) -> Iterator[bytes]:
    """What the answer depends on: roles, texts, and the pictures' digests."""
    prompt = request.prompt
    parts = (
        ((turn.role.value, part) for turn in prompt.turns for part in turn.parts)
        if isinstance(prompt, Conversation)
        else (("raw", part) for part in prompt.parts())
    )
    for role, part in parts:
        yield role.encode()
        yield part.encode() if isinstance(part, str) else digest_of(part)


def digest_of(image: Image) -> bytes:
    """The sha256 of a picture, whether it was sent or named."""
    return image.sha256 or hashlib.sha256(image.data).digest()
