"""What OpenAI's clients send: the bodies of /v1/chat/completions and /v1/completions.

Laws: a field is served, ignored on purpose (IGNORED says which and why), or refused; none is dropped in silence. A
field that neither OpenAI nor this gateway knows is refused by its name. docs/openai.md has the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MOST_CHOICES = 16
"""Answers to one prompt in one request."""

IGNORED: Mapping[str, str] = {
    "metadata": "labels for OpenAI's own dashboard",
    "moderation": "there is no moderation here",
    "parallel_tool_calls": "there are no tool calls here",
    "prompt_cache_key": "prompts are recognised by their content, without a key",
    "prompt_cache_options": "prompts are recognised by their content",
    "prompt_cache_retention": "the workers' memory decides",
    "reasoning_effort": "the models served do not reason apart from their answer",
    "safety_identifier": "nothing is reported to anybody",
    "service_tier": "there is one; see priority",
    "store": "answers are not stored",
    "verbosity": "the models served have no such setting",
}
"""Fields that change nothing here, and why."""

REFUSED: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none",),
    "tools": ([],),
    "web_search_options": (),
}
"""Fields that would change the answer in ways not served, with the values that change nothing; null always is one."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ImageUrl(_Strict):
    """Where a picture is: a data URL, or the address of one where that is allowed."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None
    """Ignored: the model's own preprocessing decides."""


class TextPart(_Strict):
    """Text."""

    type: Literal["text"]
    text: str


class ImagePart(_Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Strict):
    """What one side said. `developer` is `system` by another name."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None
    """Ignored: the models served do not know names."""
    refusal: None = None


class StreamOptions(_Strict):
    """What a stream tells beside its text."""

    include_usage: bool = False
    include_obfuscation: bool | None = None
    """Ignored."""


class _Common(_Strict):
    @model_validator(mode="before")
    @classmethod
    def _sort_out(cls, body: Any) -> Any:
        """Take off what is ignored, and refuse what is not served."""
        if not isinstance(body, dict):
            return body
        for name, harmless in REFUSED.items():
            if body.get(name) is not None and body[name] not in harmless:
                raise PydanticCustomError("not_served", "{name} is not served here", {"name": name})
        return {name: value for name, value in body.items() if name not in IGNORED and name not in REFUSED}

    model: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    """On whose account: tenants share the fleet fairly."""

    # Beyond OpenAI's, by the names that vLLM gives them.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    priority: Literal["high", "normal", "low"] | None = None

    @property
    def most_tokens(self) -> int | None:
        """The longest answer asked for."""
        return self.max_tokens


class ChatRequest(_Common):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(_Common):
    """The body of /v1/completions."""

    prompt: str | list[str]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None
