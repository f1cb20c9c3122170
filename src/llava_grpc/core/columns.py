"""What dispatch looks at, as columns: one array for each figure, one row for each worker.

A choice among a thousand workers reads a few arrays instead of a thousand objects. The registry keeps the rows in step
with its workers; a row is given again when its worker has left.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

_FIRST = 16
_SPEED, _QUEUE, _ROOM, _UNREAD = range(4)


class Columns:
    """See the module. Counts are floats, since they are divided by speeds.

    `open`: whether it may be given work as far as slots go (well, a slot free, a speed). `kv_room`: tokens of KV cache
    that we have not promised; infinite where unknown. `kv_bounded`: whether any is not.
    """

    __slots__ = ("_free", "_table", "_used", "alive", "kv_bounded", "kv_room", "open")

    def __init__(self) -> None:
        self._table = np.zeros((4, _FIRST))
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
        table[_SPEED, row], table[_QUEUE, row], table[_ROOM, row], table[_UNREAD, row] = speed, queue, room, unread
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
        return bool(self._table[_SPEED, rows].any())

    def are_idle(self, rows: Rows) -> bool:
        """Whether no request is on any of them."""
        return not self._table[_QUEUE, rows].any()

    def taken(self, rows: Rows) -> tuple[Floats, Floats, Floats, Floats]:
        """Read-only copies: speed, queue, room and unread of those rows."""
        table = self._table.take(rows, axis=1)
        table.setflags(write=False)
        return table[_SPEED], table[_QUEUE], table[_ROOM], table[_UNREAD]
