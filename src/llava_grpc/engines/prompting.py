"""Prompts to token ids, with the model's own chat template, and with nothing that a user types taken for control.

Law: a control token in the ids was put there by the template, or by the caller of a raw prompt, who is the template;
never by the text of a turn. `<image>` or `</s>` typed by a user is the characters `<`, `i`, ... to the model.

How: a special token can only arise from a user's text where its first character stands in that text. When such a
character is there, the texts are rendered with it replaced by a mark that nobody can guess; all special tokens in the
rendered text are then the template's. If marking changed their number, the text is encoded by a second tokenizer,
whose special tokens have unguessable names: the template's are renamed, the marks turned back, and what the user typed
is encoded in its place like any other text. Otherwise, and that is nearly always, the rendered text is encoded as the
processor would. Marks survive templates that trim or cut the text, since they replace characters, not spans.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer

from llava_grpc.core.prompt import Conversation, Image, Prompt, RawPrompt, Turn
from llava_grpc.errors import PromptInvalidError, PromptTooLongError

logger = logging.getLogger(__name__)

DEFAULT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{{ ' ' -}}
{%- elif message['role'] == 'user' -%}
{{- 'USER: ' -}}
{%- for part in message['content'] if part['type'] == 'image' %}<image>{{ '\\n' }}{% endfor -%}
{%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{{ ' ' -}}
{%- else -%}
{{- 'ASSISTANT: ' -}}
{%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{{ '</s>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif -%}
"""
"""LLaVA-1.5's, for checkpoints that bring none; `<image>` and `</s>` stand for the checkpoint's own."""

Render = Callable[[list[dict[str, Any]]], str]
"""Messages to text, by the checkpoint's template; raises what the template raises."""


@dataclass(frozen=True, slots=True)
class TemplateKind:
    """What shape of message content a template takes."""

    lists: bool
    """[{"type": "text", "text": ...}, {"type": "image"}] or one string."""
    images: bool
    """Whether the image token gets into the text for each picture."""


def probe_template(render: Render, image_token: str) -> TemplateKind | None:
    """What the template takes, found by trying; None where it can do nothing with either shape."""
    word = "probe" + secrets.token_hex(4)
    text = {"type": "text", "text": word}
    for images in (True, False) if image_token else (False,):
        content: list[dict[str, str]] = [{"type": "image"}, text] if images else [text]
        rendered = _try(render, content)
        if rendered.count(word) == 1 and "'type'" not in rendered and rendered.count(image_token or "\0") == images:
            return TemplateKind(lists=True, images=images)
    rendered = _try(render, f"{image_token}\n{word}" if image_token else word)
    if rendered.count(word) == 1:
        return TemplateKind(lists=False, images=bool(image_token) and rendered.count(image_token) == 1)
    return None


def _try(render: Render, content: object) -> str:
    try:
        return render([{"role": "user", "content": content}])
    except Exception:  # a template may fail on the wrong shape in any way
        return ""


class Prompter:
    """Encodes prompts for one checkpoint. Any thread may call.

    Args:
        tokenizer: the checkpoint's, as the `tokenizers` library has it. Copied.
        render: its chat template.
        kind: what the template takes.
        image_token: what stands for a picture in a rendered text; empty where the model sees none.
        bos_token: a rendered text that begins with it gets no second one.
        conversations_add_special: whether encoding adds what the tokenizer adds to a text (as processors do, and
            tokenizers do not) when a conversation is encoded.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        render: Render,
        kind: TemplateKind,
        *,
        image_token: str = "",
        bos_token: str = "",
        conversations_add_special: bool = True,
    ) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._render = render
        self._kind = kind
        self._image_token = image_token
        self._bos_token = bos_token
        self._conversations_add_special = conversations_add_special
        added = {token.content: (id_, token) for id_, token in self._tokenizer.get_added_tokens_decoder().items()}
        control = sorted((content for content in added if not content.isspace()), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, control)) or r"(?!)")
        nonce = secrets.token_hex(8)  # lower case: normalizers leave it alone
        self._names = {content: f"\ue000{nonce}{number}\ue001" for number, content in enumerate(control)}
        first = {content[0] for content in control}
        self._marks = {ord(one): f"\ue002{nonce}{number}\ue003" for number, one in enumerate(sorted(first))}
        self._unmarks = {mark: chr(one) for one, mark in self._marks.items()}
        self._first = re.compile("|".join(map(re.escape, sorted(first))) or r"(?!)")
        self._renamed, self._original_ids = _renamed(self._tokenizer, added, self._names)
        self._before, self._after = self._surroundings()
        self._longest = max((len(one) for one in self._tokenizer.get_vocab()), default=1)
        self._shrinks = _may_shrink(self._tokenizer)

    @property
    def image_id(self) -> int:
        """The id that stands for a picture in what `encode` gives; -1 where there is none."""
        found = self._tokenizer.token_to_id(self._image_token) if self._image_token else None
        return -1 if found is None else found

    def encode(self, prompt: Prompt, *, most: int | None = None) -> list[int]:
        """The prompt's ids, `image_id` once for each picture, in order.

        Args:
            prompt: a conversation, or a raw prompt, which is encoded as it is: its special tokens are control.
            most: more ids than this are of no use; a prompt that is bound to have more is refused unencoded.

        Raises:
            PromptInvalidError: the template refuses the conversation, or loses a picture.
            PromptTooLongError: more than `most` ids.
        """
        if most is not None and not self._shrinks:
            self._refuse_hopeless(prompt, most)
        ids = self._raw(prompt) if isinstance(prompt, RawPrompt) else self._conversation(prompt)
        placed = ids.count(self.image_id) if self._image_token else 0
        if placed != len(prompt.images):
            raise PromptInvalidError(
                f"the model's chat template wrote {placed} pictures of {len(prompt.images)}",
                remedy="Put pictures in the turns where the model expects them, or send a raw prompt",
            )
        return ids

    def _conversation(self, prompt: Conversation) -> list[int]:
        texts = [part for turn in prompt.turns for part in turn.parts if isinstance(part, str)]
        plain = self._rendered(prompt, mark=False)
        add_special = self._conversations_add_special
        if any(self._first.search(text) for text in texts):
            marked = self._rendered(prompt, mark=True)
            if len(self._control.findall(plain)) != len(self._control.findall(marked)):
                return self._encode_marked(marked, add_special)
        return self._encode(plain, add_special)

    def _rendered(self, prompt: Conversation, *, mark: bool) -> str:
        try:
            return self._render([self._message(turn, mark) for turn in prompt.turns])
        except Exception as error:
            raise PromptInvalidError(
                f"the model's chat template refuses the conversation: {error}",
                remedy="Change the turns' roles or order, or send a raw prompt",
            ) from error

    def _message(self, turn: Turn, mark: bool) -> dict[str, Any]:
        parts = [part.translate(self._marks) if mark and isinstance(part, str) else part for part in turn.parts]
        content: object
        if self._kind.lists:
            content = [
                {"type": "image"} if isinstance(part, Image) else {"type": "text", "text": part} for part in parts
            ]
        else:
            content = "".join(self._image_token + "\n" if isinstance(part, Image) else part for part in parts)
        return {"role": turn.role.value, "content": content}

    def _raw(self, prompt: RawPrompt) -> list[int]:
        texts = [part for part in prompt.parts() if isinstance(part, str)]
        if not any(self._image_token and self._image_token in text for text in texts):
            return self._encode("".join(self._image_token if isinstance(p, Image) else p for p in prompt.parts()), True)
        # A model whose image token is spelled otherwise, and that spelling in the text: it stands for no picture.
        marks = self._marks
        return self._encode_marked(
            "".join(
                self._image_token
                if isinstance(part, Image)
                else part.replace(self._image_token, self._image_token.translate(marks))
                for part in prompt.parts()
            ),
            True,
        )

    def _encode(self, text: str, add_special: bool) -> list[int]:
        add_special = add_special and not self._begins_with_bos(text)
        return self._tokenizer.encode(text, add_special_tokens=add_special).ids

    def _encode_marked(self, text: str, add_special: bool) -> list[int]:
        add_special = add_special and not self._begins_with_bos(text)
        renamed = self._control.sub(lambda found: self._names[found[0]], text)
        for mark, original in self._unmarks.items():
            renamed = renamed.replace(mark, original)
        ids = [self._original_ids.get(id_, id_) for id_ in self._renamed.encode(renamed, add_special_tokens=False).ids]
        return [*self._before, *ids, *self._after] if add_special else ids

    def _begins_with_bos(self, text: str) -> bool:
        return bool(self._bos_token) and text.startswith(self._bos_token)

    def _surroundings(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text."""
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        full = self._tokenizer.encode("a", add_special_tokens=True).ids
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
        return [], []

    def _refuse_hopeless(self, prompt: Prompt, most: int) -> None:
        """No token is longer than the longest one, so very long texts need not be encoded to be refused.

        Only what surely reaches the model counts: white space may be trimmed, earlier turns left out by the template.
        """
        parts = [prompt.text] if isinstance(prompt, RawPrompt) else list(prompt.turns[-1].parts)
        texts = [part for part in parts if isinstance(part, str)]
        if sum(map(len, texts)) <= most * self._longest:
            return
        characters = sum(len(word) for text in texts for word in text.split())
        at_least = -(-characters // self._longest)
        if at_least > most:
            raise PromptTooLongError(
                f"the prompt has {characters} characters, which are {at_least} tokens or more, and {most} fit",
                metadata={"prompt_tokens_at_least": str(at_least), "context_tokens": str(most)},
            )


def _renamed(
    tokenizer: Tokenizer, added: Mapping[str, tuple[int, AddedToken]], names: Mapping[str, str]
) -> tuple[Tokenizer, dict[int, int]]:
    """The same tokenizer with its special tokens renamed, and from its ids of these to the original ones."""
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"], spec["post_processor"] = [], None
    copy = Tokenizer.from_str(json.dumps(spec))
    ids: dict[int, int] = {}
    for content, (original, token) in added.items():
        name = names.get(content, content)
        copy.add_tokens(
            [
                AddedToken(
                    name,
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=token.normalized,
                )
            ]
        )
        renamed_id = copy.token_to_id(name)
        assert renamed_id is not None  # just added
        ids[renamed_id] = original
    return copy, ids


def _may_shrink(tokenizer: Tokenizer) -> bool:
    """Whether many characters may become few tokens, so that a text's length says nothing certain."""
    spec = json.loads(tokenizer.to_str())
    model, normalizer = spec["model"], spec.get("normalizer")
    if model.get("unk_token") and not model.get("byte_fallback"):
        return True  # one unknown token may stand for many characters
    steps: Sequence[Mapping[str, Any]] = []
    if normalizer is not None:
        steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    return any(step["type"] not in ("Prepend", "NFD", "NFKD", "ByteLevel") and not _keeps(step) for step in steps)


def _keeps(step: Mapping[str, Any]) -> bool:
    """Whether a replacement makes nothing shorter."""
    pattern = step.get("pattern", {}).get("String")
    return step["type"] == "Replace" and pattern is not None and len(step["content"]) >= len(pattern)
