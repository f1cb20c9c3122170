"""What a worker keeps between requests: the features of pictures, and the KV cache of prompts by prefix.

Laws:
1. Both are bounded, and the least recently used goes first.
2. A piece of a prompt is never kept without all that stands before it: a piece counts as used before those it builds
   on, so it goes before them.

Left out: the room that running requests take, and pages (prefixes are shared to the token).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable
from typing import NamedTuple

from llava_grpc.core.demand import Piece
from llava_grpc.sim.workload import Request


class Room(NamedTuple):
    """How much is kept: features of so many pictures, the KV cache of so many tokens."""

    pictures: int = 0
    tokens: int = 0


class Need(NamedTuple):
    """What is to be computed before the first token: pictures to see, tokens of the prompt to read."""

    pictures: int
    tokens: int


class Caches:
    """See the module."""

    __slots__ = ("_features", "_prefixes", "_room", "_tokens")

    def __init__(self, room: Room = Room()) -> None:  # noqa: B008 - a tuple
        self._room = room
        self._features: OrderedDict[bytes, None] = OrderedDict()
        self._prefixes: OrderedDict[bytes, int] = OrderedDict()
        self._tokens = 0

    def need(self, request: Request, coming: Container[bytes] = ()) -> Need:
        """Of a request, now; `coming`: keys of pieces and pictures that will be here by the time it is read."""
        covered, pieces = 0, 0
        for key, tokens in request.pieces:
            if key not in self._prefixes and key not in coming:
                break
            covered += tokens
            pieces += 1
        unseen = {
            key
            for key, piece in zip(request.pictures, request.stands, strict=True)
            if piece >= pieces and key not in self._features and key not in coming
        }
        return Need(len(unseen), request.prompt - covered)

    def read(self, request: Request) -> Need:
        """Read its prompt: what had to be computed; all of it is kept from now on."""
        need = self.need(request)
        covered = request.prompt - need.tokens
        for key, piece in zip(request.pictures, request.stands, strict=True):
            if sum(one.tokens for one in request.pieces[: piece + 1]) > covered:  # else nobody looks at its features
                self._features[key] = None
                self._features.move_to_end(key)
        while len(self._features) > self._room.pictures:
            self._features.popitem(last=False)
        self._keep(request.pieces)
        return need

    def answered(self, request: Request) -> None:
        """Its answer ends: whatever begins with prompt and answer finds both."""
        if request.said is not None:
            self._keep((*request.pieces, request.said))

    def _keep(self, pieces: Iterable[Piece]) -> None:
        for key, tokens in reversed(tuple(pieces)):
            if key not in self._prefixes:
                self._tokens += tokens
                self._prefixes[key] = tokens
            self._prefixes.move_to_end(key)
        while self._tokens > self._room.tokens:
            self._tokens -= self._prefixes.popitem(last=False)[1]
