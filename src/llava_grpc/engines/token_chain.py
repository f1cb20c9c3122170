"""The tokens of the echo engine: a vocabulary of made-up words, and answers that are chains of hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from llava_grpc.core.prompt import Conversation, GenerationRequest, Image
from llava_grpc.core.sampling import Sampling
from llava_grpc.core.stream import AlternativeToken, TokenLogprob

VOCABULARY = 4096

_CHOOSING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
)
"""Options that choose tokens, for a model; here they enter the hash."""
_DEFAULTS = Sampling()

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


def token_text(token_id: int) -> str:
    """The text of a token: a short word with a space before it, now and then with an emoji or a Chinese character."""
    first, second = divmod(token_id, len(_SYLLABLES))
    word = _SYLLABLES[first % len(_SYLLABLES)] + _SYLLABLES[second]
    decoration = {0: "🌵", 1: "猫"}.get(token_id % 64, "")
    return f" {word}{decoration}"


def decode(token_ids: Sequence[int]) -> str:
    """The text of several."""
    return "".join(map(token_text, token_ids))


class TokenChain:
    """The answer to one request, token by token.

    The state is a 64-bit hash of prompt, seed, options and all tokens so far.

    Args:
        end_ids: tokens that do not come while the answer is shorter than its `min_new_tokens`.
    """

    def __init__(self, request: GenerationRequest, end_ids: frozenset[int] = frozenset()) -> None:
        digest = hashlib.blake2b(digest_size=8)
        for piece in prompt_pieces(request):
            digest.update(len(piece).to_bytes(8, "big"))
            digest.update(piece)
        digest.update((request.sampling.seed or 0).to_bytes(8, "big"))
        for name in _CHOOSING:
            if (value := getattr(request.sampling, name)) != getattr(_DEFAULTS, name):
                digest.update(f"{name}={value!r};".encode())
        self._state = digest.digest()
        self._barred = request.sampling.min_new_tokens
        self._end_ids = end_ids
        for token_id in request.emitted_token_ids:
            self._advance(token_id)

    def next(self) -> int:
        """The next token."""
        token_id = self._token()
        self._advance(token_id)
        return token_id

    def likelihood(self, alternatives: int) -> TokenLogprob:
        """Made up for the next token: the chosen one is the likeliest, its successors follow."""
        token_id, certainty = self._token(), self._state[4] + 1  # in steps of 1/256: exact in the wire's float32
        top = tuple(
            AlternativeToken(other := (token_id + rank) % VOCABULARY, -rank - certainty / 256, _utf8(other))
            for rank in range(alternatives)
        )
        return TokenLogprob(token_id, -certainty / 256, _utf8(token_id), top)

    def _token(self) -> int:
        token_id = int.from_bytes(self._state[:4], "big") % VOCABULARY
        while self._barred > 0 and token_id in self._end_ids and len(self._end_ids) < VOCABULARY:
            token_id = (token_id + 1) % VOCABULARY
        return token_id

    def _advance(self, token_id: int) -> None:
        self._barred -= 1
        self._state = hashlib.blake2b(self._state + token_id.to_bytes(8, "big"), digest_size=8).digest()


def _utf8(token_id: int) -> bytes:
    return token_text(token_id).encode()


def prompt_pieces(request: GenerationRequest) -> Iterator[bytes]:
    """What the prompt is made of, in order: roles and texts as they are, pictures as digests."""
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
    """Of its bytes; what it goes by where it is named by digest."""
    return image.sha256 or hashlib.sha256(image.data).digest()
