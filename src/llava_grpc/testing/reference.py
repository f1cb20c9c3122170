"""What an engine is measured by: `model.generate` alone, and a sink that waits for the end of an answer.

torch and transformers are imported when a `Reference` is made, not before.
"""

from __future__ import annotations

import io
import queue
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_grpc.core.prompt import Conversation, GenerationRequest, Image, Prompt, RawPrompt
from llava_grpc.core.sampling import Sampling
from llava_grpc.core.stream import Delta
from llava_grpc.engines.base import Began, Ended, Engine, EngineEvent, Failed, Ticket


@dataclass
class Answer:
    """A sink: `engine.submit(request, answer)`, then `answer.wait()`."""

    events: list[EngineEvent] = field(default_factory=list)
    ticket: Ticket | None = None
    _queue: queue.Queue[EngineEvent] = field(default_factory=queue.Queue)

    def __call__(self, event: EngineEvent) -> None:
        """Takes an event, from any thread."""
        self._queue.put(event)

    def next(self, timeout: float = 60.0) -> EngineEvent:
        """The next event; `queue.Empty` where none comes in time."""
        event = self._queue.get(timeout=timeout)
        self.events.append(event)
        return event

    def wait(self, timeout: float = 60.0) -> Answer:
        """Until the answer has ended."""
        while not isinstance(self.next(timeout), Ended | Failed):
            pass
        return self

    @property
    def deltas(self) -> list[Delta]:
        """What was delivered."""
        return [event for event in self.events if isinstance(event, Delta)]

    @property
    def text(self) -> str:
        """All text delivered."""
        return "".join(delta.text for delta in self.deltas)

    @property
    def token_ids(self) -> list[int]:
        """All tokens delivered."""
        return [token_id for delta in self.deltas for token_id in delta.token_ids]

    @property
    def end(self) -> Ended:
        """How it ended; raises what made it fail."""
        last = self.events[-1]
        if isinstance(last, Failed):
            raise last.error
        assert isinstance(last, Ended)
        assert sum(isinstance(event, Began) for event in self.events) == 1
        return last


def submit(
    engine: Engine, prompt: Prompt, sampling: Sampling, *, emitted: Sequence[int] = (), request_id: str = "test"
) -> Answer:
    """Submits a request; the answer is to be waited for."""
    answer = Answer()
    request = GenerationRequest(
        request_id=request_id, model="", prompt=prompt, sampling=sampling, emitted_token_ids=tuple(emitted)
    )
    answer.ticket = engine.submit(request.with_seed(0), answer)
    return answer


class Reference:
    """The checkpoint in `folder`, asked by `model.generate`, one request at a time, greedily, in float32."""

    def __init__(self, folder: Path) -> None:
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self._torch = torch
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = transformers.AutoProcessor.from_pretrained(folder)

    def inputs(self, prompt: Prompt) -> Any:
        """The processor's tensors for a prompt."""
        from PIL import Image as Pillow

        images = [Pillow.open(io.BytesIO(image.data)).convert("RGB") for image in prompt.images]
        if isinstance(prompt, RawPrompt):
            return self.processor(text=[prompt.text], images=images or None, return_tensors="pt")
        return self.processor.apply_chat_template(
            messages(prompt),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", "images": images or None},
        )

    def answer(self, prompt: Prompt, max_new_tokens: int, **options: Any) -> tuple[list[int], str]:
        """Tokens without the end token, and their text; `options` are those of `model.generate`."""
        inputs = self.inputs(prompt)
        with self._torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, **options)
        ids: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
        ends = self.model.generation_config.eos_token_id
        if ids and ids[-1] in (ends if isinstance(ends, list) else [ends]):
            ids.pop()
        text: str = self.processor.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return ids, text


def messages(prompt: Conversation) -> list[dict[str, Any]]:
    """A conversation in the form that chat templates take."""
    return [
        {
            "role": turn.role.value,
            "content": [
                {"type": "image"} if isinstance(part, Image) else {"type": "text", "text": part} for part in turn.parts
            ],
        }
        for turn in prompt.turns
    ]
