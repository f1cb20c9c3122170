"""Pictures as tokens: ids beyond the vocabulary, each of which stands for one projected image feature.

An engine that batches continuously takes token ids only. Give every feature of a picture an id of its own at or above
the vocabulary size, let the input embedding look such ids up in a table of features, and a prompt with pictures is a
prompt like any other: it can be cut into chunks, batched, and its KV cache shared by whoever sends the picture again.

Laws of `RangeTable`, which decides who gets which rows and knows no torch:

1. A key (the sha256 of the encoded picture) has one range of consecutive rows, the same until it is evicted.
2. A range that is used is never evicted; of the others the one used longest ago goes first.
3. A row changes its meaning only after `flushed`: KV pages are matched by token ids alone and stay matchable when a
   request has ended, so rows of an evicted picture are first *soiled*, and free again when the holder of the pages says
   that none of those that nobody uses is left. A range is therefore released only after its request's pages are.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Key = bytes


class NoRoomError(Exception):
    """Ranges in use leave no room for this one; later they may."""


class FlushNeededError(Exception):
    """There is room, once the KV pages of evicted pictures are dropped: do so, call `flushed`, try again."""


@dataclass(slots=True)
class _Entry:
    rows: range
    layout: tuple[int, ...] | None = None  # until it is described
    users: int = 1


@dataclass(frozen=True, slots=True)
class Held:
    """A picture in the table.

    Attributes:
        rows: its rows, in the order of its features.
        layout: the ids that stand for it in a prompt, pseudo ids and others.
    """

    rows: range
    layout: tuple[int, ...]


class RangeTable:
    """Who has which rows. Every method is atomic; any thread may call.

    Args:
        capacity: rows in all.
        eviction_share: when rows are needed, evict until this share of the table is free: a flush costs every
            shared prefix, so it should not be needed for every picture.
    """

    def __init__(self, capacity: int, eviction_share: float = 0.25) -> None:
        self.capacity = capacity
        self._share = eviction_share
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()  # least recently used first
        self._free: list[range] = [range(capacity)] if capacity else []  # by start, never adjacent
        self._soiled: list[range] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: Key) -> Held | None:
        """The picture, now in use once more; None where it is not held, or only reserved."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.layout is None:
                return None
            entry.users += 1
            self._entries.move_to_end(key)
            return Held(entry.rows, entry.layout)

    def reserve(self, key: Key, count: int) -> range:
        """Rows for a picture that is not held yet, in use once; nobody finds it before `describe`.

        Raises:
            FlushNeededError: after a flush there is room.
            NoRoomError: not even then.
        """
        with self._lock:
            if key in self._entries:
                raise KeyError("the picture is held already")
            rows = self._take(count)
            if rows is None:
                if self._make_room(count):
                    raise FlushNeededError
                raise NoRoomError
            self._entries[key] = _Entry(rows)
            return rows

    def describe(self, key: Key, layout: tuple[int, ...]) -> None:
        """Notes how the picture stands in a prompt."""
        with self._lock:
            self._entries[key].layout = layout

    def release(self, key: Key) -> None:
        """One use less; only after the KV pages of that use are released."""
        with self._lock:
            self._entries[key].users -= 1

    def discard(self, key: Key) -> None:
        """Forgets a picture that was reserved and never described: nobody uses it, its rows are in no KV page."""
        with self._lock:
            self._free = _merged([*self._free, self._entries.pop(key).rows])

    def flushed(self) -> None:
        """No KV page that is out of use is left: soiled rows are free."""
        with self._lock:
            self._free = _merged(self._free + self._soiled)
            self._soiled = []

    def _take(self, count: int) -> range | None:
        for index, hole in enumerate(self._free):
            if len(hole) >= count:
                rows = range(hole.start, hole.start + count)
                rest = range(rows.stop, hole.stop)
                self._free[index : index + 1] = [rest] if rest else []
                return rows
        return None

    def _make_room(self, count: int) -> bool:
        """Evicts until a flush yields `count` rows in a row; whether one will."""
        wanted = max(count, int(self.capacity * self._share))
        for key in [key for key, entry in self._entries.items() if entry.users == 0]:
            coming = _merged(self._free + self._soiled)
            if max(map(len, coming), default=0) >= count and sum(map(len, coming)) >= wanted:
                break
            self._soiled.append(self._entries.pop(key).rows)
        return max(map(len, _merged(self._free + self._soiled)), default=0) >= count


def _merged(ranges: list[range]) -> list[range]:
    """The ranges by start, adjacent ones joined."""
    merged: list[range] = []
    for one in sorted(ranges, key=lambda one: one.start):
        if merged and merged[-1].stop == one.start:
            merged[-1] = range(merged[-1].start, one.stop)
        else:
            merged.append(one)
    return merged


class PictureEmbedding(nn.Module):
    """A model's input embedding that knows pictures: wraps the model's own, so that what that does (scaling) stays.

    Args:
        words: the model's embedding; its ids are 0 to `vocabulary` - 1.
        vocabulary: ids from here on are rows of the table.
        rows, width: shape of the table of features, allocated once: captured graphs keep its address.
    """

    def __init__(self, words: nn.Module, vocabulary: int, rows: int, width: int) -> None:
        super().__init__()
        self.words = words
        self.vocabulary = vocabulary
        weight = next(words.parameters())
        self.features: Tensor
        self.register_buffer(
            "features", torch.empty((max(rows, 1), width), dtype=weight.dtype, device=weight.device), persistent=False
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Ids of any shape [...] to embeddings [..., width]; no branch on their values."""
        words: Tensor = self.words(ids.clamp(max=self.vocabulary - 1))
        pictured = ids >= self.vocabulary
        rows = (ids - self.vocabulary).clamp_(min=0)
        return torch.where(pictured.unsqueeze(-1), self.features[rows], words)

    def write(self, rows: range, features: Tensor) -> None:
        """Puts features [len(rows), width] into the table, visible to every stream when it returns."""
        with torch.inference_mode():
            self.features[rows.start : rows.stop].copy_(features)
        if self.features.device.type == "cuda":
            torch.cuda.synchronize(self.features.device)
