"""What a request asks for, read off its message: names of its pieces and pictures, and estimates of their tokens.

Nothing is decoded or tokenized here: pictures go by the digests of their bytes, text by its length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from llava_grpc.core.demand import Demand, Piece
from llava_grpc.core.prompt import DEFAULT_MAX_NEW_TOKENS
from llava_grpc.v1 import inference_pb2 as pb

CHARACTERS_PER_TOKEN = 4
TOKENS_PER_PICTURE = 576
"""LLaVA-1.5's: 24 x 24 patches."""
TEXT_PIECE = 1024
"""Characters of raw text that make a piece: prompts that share only their beginning are seen to do so."""


def demand_of(message: pb.GenerateRequest) -> Demand:
    """The demand. Costs a pass over its bytes: for large messages, off the event loop."""
    pictures: list[bytes] = []
    turns = _raw(message.raw, pictures) if message.HasField("raw") else _turns(message.conversation, pictures)
    sampling = message.sampling
    most = sampling.max_new_tokens if sampling.HasField("max_new_tokens") else DEFAULT_MAX_NEW_TOKENS
    return Demand(tuple(_chained(message.model.encode(), turns)), tuple(pictures), most)


def _chained(start: bytes, turns: Iterable[tuple[bytes, int]]) -> Iterator[Piece]:
    """Each piece's key covers all before it, and the model."""
    key = start
    for content, tokens in turns:
        key = hashlib.blake2b(content, digest_size=16, key=hashlib.blake2b(key, digest_size=16).digest()).digest()
        yield Piece(key, tokens)


def _turns(conversation: pb.Conversation, pictures: list[bytes]) -> Iterator[tuple[bytes, int]]:
    for turn in conversation.turns:
        contents = [turn.role.to_bytes(4, "big")]
        tokens = 0
        for part in turn.parts:
            if part.HasField("image"):
                digest = _digest(part.image)
                pictures.append(digest)
                contents.append(digest)
                tokens += TOKENS_PER_PICTURE
            else:
                contents.append(part.text.encode())
                tokens += _tokens(part.text)
        yield b"\0".join(contents), tokens


def _raw(prompt: pb.RawPrompt, pictures: list[bytes]) -> Iterator[tuple[bytes, int]]:
    """The pictures first: where among the text they stand, the text says."""
    pictures.extend(_digest(image) for image in prompt.images)
    if pictures:
        yield b"\0".join(pictures), TOKENS_PER_PICTURE * len(pictures)
    for start in range(0, len(prompt.text), TEXT_PIECE):
        text = prompt.text[start : start + TEXT_PIECE]
        yield text.encode(), _tokens(text)


def _tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def _digest(image: pb.Image) -> bytes:
    return image.sha256 or hashlib.sha256(image.data or image.uri.encode()).digest()
