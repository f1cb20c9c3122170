"""The reaper: drops workers whose heartbeats have stopped, and turns away requests that have waited for too long.

The last line of defence: it never dies of an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from llava_grpc.controller.fleet import Fleet

_log = logging.getLogger(__name__)


AFTER_A_DEFECT = 1.0
"""Seconds to wait before going on after an error that should not happen."""


async def reap(fleet: Fleet) -> None:
    """Act when somebody's time is up; sleeps until then, or until the fleet changes. Runs until cancelled."""
    while True:
        try:
            await _wait_until_due(fleet)
            for worker in fleet.expire():
                _log.warning(
                    "worker %s was dropped: no heartbeat for %g s", worker.address, fleet.settings.heartbeat_expiry
                )
            fleet.place()
        except Exception:
            _log.exception("defect in the reaper; it goes on")
            await asyncio.sleep(AFTER_A_DEFECT)


async def _wait_until_due(fleet: Fleet) -> None:
    fleet.changed.clear()
    due = fleet.next_expiry()
    with contextlib.suppress(asyncio.TimeoutError):
        async with asyncio.timeout(None if due is None else max(0.0, due - fleet.clock())):
            await fleet.changed.wait()
