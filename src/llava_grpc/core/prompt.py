"""What is asked: prompts and the request around them, as values.

Law: a value of this module that exists is well-formed; each is checked as it is made and raises the error that the
caller gets to see. Checks that need the model (context length, does it see) are the engine's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum

from llava_grpc.core.sampling import Sampling as Sampling  # a request's part: found here too
from llava_grpc.core.stream import Fingerprint
from llava_grpc.errors import (
    ImageCountError,
    ImageInvalidError,
    PromptInvalidError,
    RequestIdInvalidError,
)

IMAGE_PLACEHOLDER = "<image>"
MAX_REQUEST_ID = 128


class Priority(IntEnum):
    """Which requests go first where they wait: the lower number."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


class Role(Enum):
    """Who speaks in a turn."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Image:
    """A picture: its encoded bytes, or the sha256 (32 bytes) of a picture that the worker has seen."""

    data: bytes = b""
    sha256: bytes = b""

    def __post_init__(self) -> None:
        if bool(self.data) == bool(self.sha256):
            raise ImageInvalidError("a picture needs either bytes or a sha256 digest, and has neither or both")
        if self.sha256 and len(self.sha256) != 32:
            raise ImageInvalidError(
                f"a sha256 digest has 32 bytes, this one {len(self.sha256)}", remedy="Send the raw digest, not its hex"
            )


Part = str | Image
"""A piece of a turn: text, or a picture."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said: parts in order, at least one."""

    role: Role
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise PromptInvalidError("a turn has no parts", remedy="Give each turn text or a picture")
        if self.role is not Role.USER and any(isinstance(part, Image) for part in self.parts):
            raise PromptInvalidError(
                f"a picture in a turn of the {self.role.value}", remedy="Pictures belong to the user's turns"
            )


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns, oldest first: a system turn at most at the start, the user's last."""

    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        if not self.turns:
            raise PromptInvalidError("the conversation is empty")
        if any(turn.role is Role.SYSTEM for turn in self.turns[1:]):
            raise PromptInvalidError("a system turn that is not the first", remedy="Put it first")
        if self.turns[-1].role is not Role.USER:
            raise PromptInvalidError(f"the last turn is the {self.turns[-1].role.value}'s, not the user's")

    @property
    def images(self) -> tuple[Image, ...]:
        """All pictures, in order."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Image))


@dataclass(frozen=True, slots=True)
class RawPrompt:
    """Text with no template applied; each ``<image>`` stands for the next picture."""

    text: str
    images: tuple[Image, ...] = ()

    def __post_init__(self) -> None:
        if not self.text:
            raise PromptInvalidError("the raw prompt is empty", remedy="Give it text")
        placeholders = self.text.count(IMAGE_PLACEHOLDER)
        if placeholders != len(self.images):
            raise ImageCountError(
                f"the prompt has {placeholders} {IMAGE_PLACEHOLDER} for {len(self.images)} pictures",
                metadata={"placeholders": str(placeholders), "images": str(len(self.images))},
            )

    def parts(self) -> Iterator[Part]:
        """Text and pictures in order; empty text between them is left out."""
        pieces = self.text.split(IMAGE_PLACEHOLDER)
        for index, piece in enumerate(pieces):
            if piece:
                yield piece
            if index < len(self.images):
                yield self.images[index]


Prompt = Conversation | RawPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A prompt, how to answer it, and where to go on.

    `emitted_token_ids` were delivered by earlier attempts: the answer goes on after them, offsets counting them in.
    `begun` is the fingerprint under which they were made, where it is known.
    """

    request_id: str
    model: str
    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    attempt: int = 0
    emitted_token_ids: tuple[int, ...] = ()
    begun: Fingerprint | None = None
    priority: Priority = Priority.NORMAL
    tenant: str = ""

    def __post_init__(self) -> None:
        check_request_id(self.request_id)

    @property
    def images(self) -> tuple[Image, ...]:
        """All pictures, in order."""
        return self.prompt.images

    def with_seed(self, seed: int) -> GenerationRequest:
        """The same request with a seed, where it had none."""
        if self.sampling.seed is not None:
            return self
        return replace(self, sampling=replace(self.sampling, seed=seed))


def check_request_id(request_id: str) -> None:
    """Raises RequestIdInvalidError unless it is fit for logs and metadata; empty is fit."""
    if len(request_id) > MAX_REQUEST_ID or any(not 33 <= ord(character) <= 126 for character in request_id):
        raise RequestIdInvalidError(f"the request id {request_id[:40]!r} cannot be used")
