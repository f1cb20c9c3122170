"""Pictures of a request to ids: look up, decode, prepare, encode, remember."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image as Pillow
from torch import Tensor, nn

from llava_grpc.core.prompt import Image
from llava_grpc.engines.images import decode_image
from llava_grpc.engines.pseudo_tokens import (
    FlushNeededError,
    Held,
    Key,
    NoRoomError,
    PictureEmbedding,
    RangeTable,
)
from llava_grpc.errors import (
    AllSlotsTakenError,
    EngineFailedError,
    ImageCountError,
    ImageInvalidError,
    ImageNotFoundError,
)

DECODED_AT_ONCE = 2
"""A picture of 50 megapixels takes 150 MB while it is decoded and prepared."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a request, in the table and in use until `PictureEncoder.release`."""

    key: Key
    held: Held


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What the processor makes of one picture: the ids that stand for it, and tensors for the vision tower."""

    layout: tuple[int, ...]
    features: int
    tensors: dict[str, Any]


class PictureEncoder:
    """Turns pictures into ranges of the feature table. Any thread may call; vision passes run one at a time, and
    pictures are decoded and prepared outside of them.

    Args:
        model: gives features for the processor's tensors (`get_image_features`).
        processor: the checkpoint's.
        embedding: the model's input embedding, with the table.
        image_id: the id that stands for one feature in what the processor writes.
        flush: drops every KV page that nobody uses; returns when that is done.
        max_pixels: see `decode_image`.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        embedding: PictureEmbedding,
        image_id: int,
        flush: Callable[[], None],
        max_pixels: int,
    ) -> None:
        self.table = RangeTable(embedding.features.shape[0])
        self._model: nn.Module = model
        self._processor = processor
        self._embedding = embedding
        self._image_id = image_id
        self._flush = flush
        self._max_pixels = max_pixels
        self._decoding = threading.BoundedSemaphore(DECODED_AT_ONCE)
        self._seeing = threading.Lock()

    def encode(self, images: Sequence[Image], *, fits: Callable[[int], None]) -> list[Picture]:
        """The pictures, in the table; each is in use until it is released.

        Args:
            images: encoded, or by digest.
            fits: called with the ids that the pictures found so far take; raises when they are too many.

        Raises:
            ImageInvalidError, ImageTooLargeError: one of them cannot be used.
            ImageNotFoundError: one by digest is not held.
            ImageCountError: together they are more than the table holds.
            AllSlotsTakenError: running requests use too much of the table.
        """
        pictures: list[Picture] = []
        try:
            for number, image in enumerate(images, start=1):
                which = f"picture {number} of {len(images)}" if len(images) > 1 else "the picture"
                used = sum({picture.key: len(picture.held.rows) for picture in pictures}.values())
                pictures.append(self._encode_one(image, which, used))
                fits(sum(len(picture.held.layout) for picture in pictures))
        except BaseException:
            self.release(pictures)
            raise
        return pictures

    def release(self, pictures: Sequence[Picture]) -> None:
        """The request that used them has ended, and its KV pages are released."""
        for picture in pictures:
            self.table.release(picture.key)

    def features_per_picture(self) -> int:
        """Encodes a small picture to see that all goes well; how many rows it takes."""
        prepared = self._prepare(Pillow.new("RGB", (64, 64), (127, 127, 127)), "a picture for trial")
        self._features(prepared)
        return prepared.features

    def _encode_one(self, image: Image, which: str, used: int) -> Picture:
        key = image.sha256 or hashlib.sha256(image.data).digest()
        held = self.table.find(key)
        if held is not None:
            return Picture(key, held)
        if not image.data:
            with self._seeing:  # another thread may be at it
                held = self.table.find(key)
            if held is None:
                raise ImageNotFoundError(f"{which} (sha256 {key.hex()}) is not held here")
            return Picture(key, held)
        with self._decoding:
            decoded = decode_image(image.data, which=which, max_pixels=self._max_pixels)
            prepared = self._prepare(decoded, which)
            del decoded  # large, and there is a queue ahead
        with self._seeing:
            held = self.table.find(key)
            if held is None:
                held = self._see(key, prepared, which, used)
            return Picture(key, held)

    def _see(self, key: Key, prepared: _Prepared, which: str, used: int) -> Held:
        if used + prepared.features > self.table.capacity:
            raise ImageCountError(
                f"with {which} the request needs {used + prepared.features} rows of the picture table, which has "
                f"{self.table.capacity}",
                remedy="Give the worker a larger picture cache",
            )
        rows = self._reserve(key, prepared.features)
        try:
            self._embedding.write(rows, self._features(prepared))
        except BaseException:
            self.table.discard(key)
            raise
        ids = iter(range(self._embedding.vocabulary + rows.start, self._embedding.vocabulary + rows.stop))
        layout = tuple(next(ids) if id_ == self._image_id else id_ for id_ in prepared.layout)
        self.table.describe(key, layout)
        return Held(rows, layout)

    def _reserve(self, key: Key, count: int) -> range:
        with suppress(FlushNeededError):
            return self._reserve_now(key, count)
        self._flush()
        self.table.flushed()
        try:
            return self._reserve_now(key, count)
        except FlushNeededError as error:  # pragma: no cover - the table promised room
            raise EngineFailedError("the picture table is inconsistent") from error

    def _reserve_now(self, key: Key, count: int) -> range:
        try:
            return self.table.reserve(key, count)
        except NoRoomError as error:
            raise AllSlotsTakenError(
                f"the pictures of running requests leave no room for one more of {count} rows"
            ) from error

    def _prepare(self, picture: Pillow.Image, which: str) -> _Prepared:
        """One picture at a time: the layout comes from the processor, whatever the family's is."""
        try:
            batch = self._processor(
                images=[picture],
                text=[self._processor.image_token],
                return_tensors="pt",
                add_special_tokens=False,
            )
        except Exception as error:  # odd shapes fail somewhere in the processor
            width, height = picture.size
            raise ImageInvalidError(
                f"{which} ({width} x {height}) cannot be prepared for the model: {error}"
            ) from error
        layout = tuple(batch["input_ids"][0].tolist())
        tensors = {name: value for name, value in batch.items() if name not in ("input_ids", "attention_mask")}
        return _Prepared(layout, layout.count(self._image_id), tensors)

    def _features(self, prepared: _Prepared) -> Tensor:
        """Features [rows, width]."""
        table = self._embedding.features
        tensors = {
            name: value.to(table.device, table.dtype if value.is_floating_point() else None)
            for name, value in prepared.tensors.items()
        }
        with torch.inference_mode():
            output = self._model.get_image_features(**tensors, return_dict=True)  # type: ignore[operator]
            features = torch.cat([one.reshape(-1, one.shape[-1]) for one in output.pooler_output])
        if len(features) != prepared.features:
            raise EngineFailedError(
                f"the model gave {len(features)} features for {prepared.features} places of a picture in the prompt"
            )
        return features
