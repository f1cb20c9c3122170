"""The reaper: drops workers whose heartbeats have stopped, and turns away requests that have waited for too long.

The last line of defence: it never dies of an error. It ticks, due or not, so that a stall of its own controller is seen
before anybody is dropped for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from llava_grpc.controller.fleet import Fleet
from llava_grpc.core.stall import tick_period

_log = logging.getLogger(__name__)


AFTER_A_DEFECT = 1.0
"""Seconds to wait before going on after an error that should not happen."""


async def reap(fleet: Fleet) -> None:
    """Act when somebody's time is up; sleeps until then, until the next tick, or until the fleet changes. Runs until
    cancelled."""
    settings = fleet.settings
    period = tick_period(settings.heartbeat_interval)
    while True:
        try:
            if stalled := fleet.tick():
                _log.warning(
                    "the controller was stalled for %.1f s: nobody is dropped for the next %g s",
                    stalled,
                    settings.heartbeat_interval,
                )
            for worker in fleet.expire():
                _log.warning("worker %s was dropped: no heartbeat for %g s", worker.address, settings.heartbeat_expiry)
            fleet.place()
            await _wait_until_due(fleet, period)
        except Exception:
            _log.exception("defect in the reaper; it goes on")
            await asyncio.sleep(AFTER_A_DEFECT)


async def _wait_until_due(fleet: Fleet, period: float) -> None:
    fleet.changed.clear()
    due = fleet.next_expiry()
    pause = period if due is None else min(period, max(0.0, due - fleet.clock()))
    with contextlib.suppress(asyncio.TimeoutError):
        async with asyncio.timeout(pause):
            await fleet.changed.wait()
