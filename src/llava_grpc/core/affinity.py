"""Which workers are likely to hold what a request needs: keys and values of its prompt's beginning, its pictures.

A guess, kept from what was sent where: a worker is taken to hold what it was given last, up to its room, the least
lately used forgotten first. Nothing is asked of workers, and a wrong guess costs time, never correctness. As in
SGLang's router (approximate trees, Zheng et al. 2024), with chained digests for the tree, so that looking up costs what
the request is long, not what the fleet is large.

Law: of each key only the HOLDERS workers that got it last are remembered. What more workers hold is no reason to prefer
one of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from llava_grpc.core.demand import Demand

HOLDERS = 16
DEFAULT_PREFIX_TOKENS = 100_000.0
DEFAULT_PICTURES = 1_000.0
"""What a worker that does not say is taken to have room for."""

_Holders = dict[bytes, dict[int, None]]


class _Shelf:
    """What one worker holds of one kind, by last use; `holders` is kept in step."""

    __slots__ = ("_holders", "_row", "items", "load", "room")

    def __init__(self, row: int, room: float, holders: _Holders) -> None:
        self._row, self.room, self._holders = row, room, holders
        self.items: OrderedDict[bytes, int] = OrderedDict()
        self.load = 0

    def put(self, key: bytes, size: int) -> None:
        self.load += size - self.items.pop(key, 0)
        self.items[key] = size
        holding = self._holders.setdefault(key, {})
        holding.pop(self._row, None)
        holding[self._row] = None
        if len(holding) > HOLDERS:
            del holding[next(iter(holding))]
        while self.load > self.room and len(self.items) > 1:
            self._forget(*self.items.popitem(last=False))

    def clear(self) -> None:
        while self.items:
            self._forget(*self.items.popitem())

    def _forget(self, key: bytes, size: int) -> None:
        self.load -= size
        holding = self._holders.get(key)
        if holding is not None:
            holding.pop(self._row, None)
            if not holding:
                del self._holders[key]


@dataclass(slots=True)
class AffinityIndex:
    """See the module. Workers go by their rows."""

    _prefix_holders: _Holders = field(default_factory=dict)
    _picture_holders: _Holders = field(default_factory=dict)
    _prefixes: dict[int, _Shelf] = field(default_factory=dict)
    _pictures: dict[int, _Shelf] = field(default_factory=dict)

    def remember(
        self,
        row: int,
        demand: Demand,
        prefix_room: float = DEFAULT_PREFIX_TOKENS,
        picture_room: float = DEFAULT_PICTURES,
    ) -> None:
        """The worker of that row was given a request. Rooms in tokens and in pictures."""
        if demand.pieces:
            shelf = self._prefixes.get(row)
            if shelf is None:
                shelf = self._prefixes[row] = _Shelf(row, prefix_room, self._prefix_holders)
            for piece in reversed(demand.pieces):  # the beginning last: it is what the most requests share
                if piece.key:
                    shelf.put(piece.key, piece.tokens)
        if demand.pictures:
            shelf = self._pictures.get(row)
            if shelf is None:
                shelf = self._pictures[row] = _Shelf(row, picture_room, self._picture_holders)
            for picture in demand.pictures:
                shelf.put(picture, 1)

    def tokens(self, demand: Demand) -> Mapping[int, int]:
        """Rows of those that are likely to hold a beginning of the prompt, with the tokens of the longest."""
        found: dict[int, int] = {}
        total = demand.prompt_tokens
        for piece in reversed(demand.pieces):
            for row in self._prefix_holders.get(piece.key, ()):
                found.setdefault(row, total)
            total -= piece.tokens
        return found

    def pictures(self, demand: Demand) -> Mapping[int, int]:
        """Rows of those that are likely to hold pictures of the request, with how many."""
        found: dict[int, int] = {}
        for picture in demand.pictures:
            for row in self._picture_holders.get(picture, ()):
                found[row] = found.get(row, 0) + 1
        return found

    def forget(self, row: int) -> None:
        """The worker of that row has left."""
        for shelves in (self._prefixes, self._pictures):
            shelf = shelves.pop(row, None)
            if shelf is not None:
                shelf.clear()
