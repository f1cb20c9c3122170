"""What dispatch looks at, as columns: one array for each figure, one row for each worker.

A choice among a thousand workers reads a few arrays instead of a thousand objects. The registry keeps the rows in step
with its workers; a row is given again when its worker has left. What workers hold of a request's prompt differs from
request to request: it stands in the same table, but only while a snapshot is taken, which is then one copy.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

_FIRST = 16
SPEED, QUEUE, ROOM, UNREAD, HELD_TOKENS, HELD_PICTURES = range(6)
"""The figures; see `strategies.Snapshot`."""


class Columns:
    """See the module. Counts are floats, since they are divided by speeds.

    `open`: whether it may be given work as far as slots go (well, a slot free, a speed). `kv_room`: tokens of KV cache
    that we have not promised; infinite where unknown. `kv_bounded`: whether any is not.
    """

    __slots__ = ("_free", "_table", "_used", "alive", "kv_bounded", "kv_room", "open")

    def __init__(self) -> None:
        self._table = np.zeros((6, _FIRST))
        self.alive = np.zeros(_FIRST, np.bool_)
        self.open = np.zeros(_FIRST, np.bool_)
        self.kv_room = np.full(_FIRST, np.inf)
        self.kv_bounded = False
        self._used = 0
        self._free: list[int] = []

    @property
    def capacity(self) -> int:
        """Rows are below this."""
        return len(self.alive)

    def add(self) -> int:
        """A row, of nobody that is alive."""
        if self._free:
            return self._free.pop()
        if self._used == self.capacity:
            self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=1)
            for name in ("alive", "open", "kv_room"):
                column = getattr(self, name)
                setattr(self, name, np.concatenate([column, np.zeros_like(column)]))
        self._used += 1
        return self._used - 1

    def write(self, row: int, *, alive: bool, speed: float, queue: int, room: int, unread: int, kv_room: float) -> None:
        """What a worker is now; see `strategies.Snapshot` for the figures."""
        table = self._table
        table[SPEED, row], table[QUEUE, row], table[ROOM, row], table[UNREAD, row] = speed, queue, room, unread
        self.alive[row] = alive
        self.open[row] = alive and room > 0 and speed > 0
        self.kv_room[row] = kv_room
        if kv_room != np.inf:
            self.kv_bounded = True

    def drop(self, row: int) -> None:
        """The row's worker has left."""
        self.alive[row] = self.open[row] = False
        self._free.append(row)

    def have_speed(self, rows: Rows) -> bool:
        """Whether any of them has one."""
        return bool(self._table[SPEED, rows].any())

    def are_idle(self, rows: Rows) -> bool:
        """Whether no request is on any of them."""
        return not self._table[QUEUE, rows].any()

    def taken(self, rows: Rows, held_tokens: Mapping[int, int], held_pictures: Mapping[int, int]) -> Floats:
        """A read-only copy of those rows: a line for each figure. What is held, of whom anything is: by row."""
        table = self._table
        for figure, held in ((HELD_TOKENS, held_tokens), (HELD_PICTURES, held_pictures)):
            line = table[figure]
            for row, amount in held.items():
                line[row] = amount
        taken = table.take(rows, axis=1)
        table[HELD_TOKENS:] = 0.0
        taken.setflags(write=False)
        return taken
