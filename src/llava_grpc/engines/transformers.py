"""The default engine: any LLaVA checkpoint of transformers, with continuous batching, on CPU or GPU.

A request's way: its prompt is laid out and encoded (`prompting`), its pictures become ids of the feature table
(`vision`, `pseudo_tokens`), and the loop's thread (`decode_loop`) decodes all requests together over one paged KV cache
(`paged`), samples (`sampling`) and turns ids to text (`text`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from llava_grpc.config import EngineSettings
from llava_grpc.core.prompt import GenerationRequest
from llava_grpc.core.sampling import DEFAULT_MAX_NEW_TOKENS, Sampling
from llava_grpc.core.stream import ModelCard
from llava_grpc.engines.base import Engine, EngineStartError, EngineStats, Progress, Sink
from llava_grpc.engines.choice import Choice
from llava_grpc.engines.decode_loop import DecodeLoop
from llava_grpc.engines.limits import check_answer, check_limit, check_vocabulary
from llava_grpc.engines.loading import Loaded, device_of, load
from llava_grpc.engines.logprobs import Teller
from llava_grpc.engines.paged import SMALLEST_PAGE, PagedDecoder, Sizes
from llava_grpc.engines.penalties import Rules
from llava_grpc.engines.pseudo_tokens import PictureEmbedding
from llava_grpc.engines.sampling import Draw
from llava_grpc.engines.sequence import Sequence
from llava_grpc.engines.text import AnswerText
from llava_grpc.engines.vision import Picture, PictureEncoder
from llava_grpc.errors import (
    EngineFailedError,
    ImageCountError,
    ImagesNotSupportedError,
    PromptTooLongError,
)

OPTIONS: Mapping[str, str] = {
    "attention": "transformers' attention implementation; by default sdpa, and on a CPU one of this package's own"
}
CPU_SLOTS, GPU_SLOTS = 16, 64
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 512, 2048
SMALLEST_KV_BYTES = 128 * 1024 * 1024
CALIBRATION_SECONDS = 0.5
SMALL_MODEL = 50_000_000
"""Parameters below which one thread computes a step faster than several: each waits longer for the others than it
computes, on a machine that does anything else besides a hundred times longer."""


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    loop: DecodeLoop
    sequence: Sequence

    def cancel(self) -> None:
        """See `Ticket`."""
        self.loop.cancel(self.sequence)


class TransformersEngine(Engine):
    """See `Engine` for the contract, `OPTIONS` for the options of its own."""

    name = "transformers"

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        unknown = set(settings.options) - set(OPTIONS)
        if unknown:
            raise EngineStartError(
                f"the engine transformers has no option {', '.join(sorted(unknown))}; it has: {', '.join(OPTIONS)}"
            )
        self._loaded: Loaded | None = None
        self._loop: DecodeLoop | None = None
        self._eyes: PictureEncoder | None = None
        self._card = ModelCard(name="")
        self._speed = 0.0
        self._slots = settings.slots
        self._kv_tokens = self._cached_pictures = 0

    def start(self, progress: Progress) -> None:
        """Loads, allocates everything it will ever need, and measures its speed."""
        settings = self.settings
        loaded = load(settings, progress)
        if threads := settings.threads or (1 if _is_small(loaded) else 0):
            torch.set_num_threads(threads)
        sizes = sizes_for(settings, loaded)
        context = min(filter(None, (loaded.context, settings.context_tokens, sizes.kv_tokens)))
        embedding = _embed_pictures(loaded, settings.image_cache_bytes) if loaded.sees_images else None
        try:
            decoder = PagedDecoder(loaded.model, sizes)
            progress("measuring its speed")
            self._speed = _measured_speed(decoder, loaded) if settings.speed is None else settings.speed
        except (RuntimeError, MemoryError, ValueError) as error:
            raise EngineStartError(f"{loaded.name} cannot be served with {sizes}: {error}") from error
        self._loop = DecodeLoop(decoder)
        if embedding is not None:
            self._eyes = PictureEncoder(
                loaded.model,
                loaded.processor,
                embedding,
                loaded.prompter.image_id,
                self._loop.drop_shared_pages,
                settings.max_image_pixels,
            )
            rows = self._try_eyes(self._eyes)
            self._cached_pictures = self._eyes.table.capacity // rows
        self._loaded = loaded
        self._slots, self._kv_tokens = sizes.slots, sizes.kv_tokens
        self._card = ModelCard(
            name=loaded.name,
            aliases=settings.aliases,
            sees_images=loaded.sees_images,
            context_tokens=context,
            fingerprint=loaded.fingerprint,
        )
        progress(
            f"{loaded.name} is ready: {sizes.slots} slots, {context} tokens of context, {self._speed:.0f} tokens/s"
        )

    def _try_eyes(self, eyes: PictureEncoder) -> int:
        """The rows that a picture takes."""
        try:
            rows = eyes.features_per_picture()
        except Exception as error:
            self.close()
            raise EngineStartError(f"the model cannot encode a picture: {error}") from error
        if rows > eyes.table.capacity:
            self.close()
            raise EngineStartError(
                f"a picture takes {rows} rows, and the picture cache of {self.settings.image_cache_bytes} bytes has "
                f"{eyes.table.capacity}; make it larger"
            )
        return rows

    @property
    def card(self) -> ModelCard:
        """The model served."""
        return self._card

    @property
    def slots(self) -> int:
        """Requests that it computes at once."""
        return self._slots

    @property
    def speed(self) -> float:
        """Tokens per second when full."""
        return self._speed

    @property
    def kv_tokens(self) -> int:
        """See `Engine.kv_tokens`."""
        return self._kv_tokens

    @property
    def cached_pictures(self) -> int:
        """See `Engine.cached_pictures`."""
        return self._cached_pictures

    def submit(self, request: GenerationRequest, sink: Sink) -> _Ticket:
        """See `Engine.submit`."""
        loop, loaded, eyes = self._loop, self._loaded, self._eyes
        if loop is None or loaded is None:
            raise EngineFailedError("the engine is not running")
        self._check(request, loaded)
        loop.take_place()
        try:
            sequence = self._sequence(request, loaded, eyes, sink)
        except BaseException:
            loop.leave_place()
            raise
        try:
            loop.submit(sequence)
        except BaseException:
            sequence.release()
            loop.leave_place()
            raise
        return _Ticket(loop, sequence)

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        return self._loop.stats() if self._loop else EngineStats()

    def close(self) -> None:
        """See `Engine.close`."""
        if self._loop is not None:
            self._loop.close()
        self._eyes = self._loaded = self._loop = None

    def _check(self, request: GenerationRequest, loaded: Loaded) -> None:
        """What can be said before anything is decoded."""
        check_limit(request, self.settings.max_new_tokens_limit)
        check_vocabulary(request, loaded.vocabulary)
        count = len(request.images)
        if count and not self._card.sees_images:
            raise ImagesNotSupportedError(f"{self._card.name} sees no pictures, and {count} were sent")
        if count > self.settings.max_images:
            raise ImageCountError(
                f"{count} pictures in one request; {self.settings.max_images} are allowed",
                remedy="Send fewer pictures",
                metadata={"images": str(count), "max_images": str(self.settings.max_images)},
            )

    def _sequence(
        self, request: GenerationRequest, loaded: Loaded, eyes: PictureEncoder | None, sink: Sink
    ) -> Sequence:
        """Prompt, pictures and limits, all checked; pictures are in use from here on."""
        sampling = request.sampling
        answer = sampling.max_new_tokens or max(sampling.min_new_tokens, 1)
        text_ids = loaded.prompter.encode(request.prompt, most=self._card.context_tokens - answer)

        def fits(picture_ids: int) -> None:
            self._check_length(len(text_ids) + picture_ids, answer)

        fits(0)
        pictures = eyes.encode(request.images, fits=fits) if eyes and request.images else []
        prompt = _with_pictures(text_ids, pictures, loaded.prompter.image_id)
        image_tokens = sum(1 for id_ in prompt if id_ >= loaded.embedded)

        def release() -> None:
            if eyes is not None:
                eyes.release(pictures)

        end_ids = _end_ids(sampling, loaded)
        try:
            self._check_length(len(prompt), answer)
            most = self._most(sampling, len(prompt))
            check_answer(request, most, end_ids)
            text = AnswerText(
                loaded.decode, loaded.silent_ids, sampling.stop, request.emitted_token_ids, sampling.min_new_tokens
            )
        except BaseException:
            release()
            raise
        return Sequence(
            name=request.request_id,
            prompt=prompt,
            image_tokens=image_tokens,
            answer=list(request.emitted_token_ids),
            most=most,
            end_ids=end_ids,
            text=text,
            sink=sink,
            release=release,
            choice=_choice(sampling, loaded, end_ids),
            teller=None if sampling.logprobs is None else Teller(loaded.spell),
        )

    def _check_length(self, prompt: int, answer: int) -> None:
        context = self._card.context_tokens
        if prompt + answer > context:
            raise PromptTooLongError(
                f"the prompt has {prompt} tokens and the answer may have {answer}: {prompt + answer} of {context}",
                metadata={
                    "prompt_tokens": str(prompt),
                    "max_new_tokens": str(answer),
                    "context_tokens": str(context),
                },
            )

    def _most(self, sampling: Sampling, prompt: int) -> int:
        if sampling.max_new_tokens is not None:
            return sampling.max_new_tokens
        return min(DEFAULT_MAX_NEW_TOKENS, self.settings.max_new_tokens_limit, self._card.context_tokens - prompt)


def _end_ids(sampling: Sampling, loaded: Loaded) -> frozenset[int]:
    return frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else loaded.end_ids)


def _choice(sampling: Sampling, loaded: Loaded, end_ids: frozenset[int]) -> Choice:
    image_id = loaded.prompter.image_id if loaded.sees_images else -1
    rules = Rules.of(sampling, vocabulary=loaded.vocabulary, end_ids=end_ids, image_id=image_id)
    return Choice(Draw.of(sampling), rules, sampling.logprobs)


def sizes_for(settings: EngineSettings, loaded: Loaded) -> Sizes:
    """Every size that the settings leave open.

    The KV cache is to hold the whole context for every slot, but takes no more than half of what the weights take on a
    CPU (128 MiB at least), nor half of what is free on a GPU, and one request's context always.
    """
    device = device_of(settings)
    on_gpu = device.type == "cuda"
    slots = settings.slots or (GPU_SLOTS if on_gpu else CPU_SLOTS)
    context = min(filter(None, (loaded.context, settings.context_tokens)))
    kv_tokens = settings.kv_tokens
    if not kv_tokens:
        if on_gpu:
            budget = torch.cuda.mem_get_info(device)[0] // 2
        else:
            weights = sum(one.numel() * one.element_size() for one in loaded.model.parameters())
            budget = max(SMALLEST_KV_BYTES, weights // 2)
        kv_tokens = max(context, min(slots * context, budget // loaded.kv_bytes_per_token))
    batch = settings.batch_tokens or (GPU_BATCH_TOKENS if on_gpu else CPU_BATCH_TOKENS)
    return Sizes(slots, kv_tokens, max(batch, slots), max(settings.page_size, SMALLEST_PAGE))


def _is_small(loaded: Loaded) -> bool:
    return sum(one.numel() for one in loaded.model.parameters()) < SMALL_MODEL


def _embed_pictures(loaded: Loaded, table_bytes: int) -> PictureEmbedding:
    """Puts the picture table between the model and its input embedding."""
    words = loaded.model.get_input_embeddings()  # type: ignore[operator]
    row_bytes = loaded.width * words.weight.element_size()
    embedding = PictureEmbedding(words, loaded.embedded, table_bytes // row_bytes, loaded.width)
    loaded.model.set_input_embeddings(embedding)  # type: ignore[operator]
    return embedding


def _measured_speed(decoder: PagedDecoder, loaded: Loaded) -> float:
    """Tokens per second with every slot taken; also warms everything up."""
    for slot in range(decoder.sizes.slots):
        prompt = [(slot + 1) % loaded.vocabulary] * 16
        decoder.add(f"trial {slot}", prompt, max_new_tokens=1_000_000, end_ids=())
    decoder.step()
    tokens, began, now = 0, time.monotonic(), 0.0
    while now < CALIBRATION_SECONDS:
        tokens += len(decoder.step())
        now = time.monotonic() - began
    decoder.reset()
    return tokens / now


def _with_pictures(text_ids: list[int], pictures: list[Picture], image_id: int) -> list[int]:
    """The pictures' ids in the places of their placeholders."""
    if not pictures:
        return text_ids
    coming = iter(pictures)
    prompt: list[int] = []
    for id_ in text_ids:
        if id_ == image_id:
            prompt.extend(next(coming).held.layout)
        else:
            prompt.append(id_)
    return prompt
