"""The drills, in less time: real processes are killed, frozen, cut off and restarted, and nothing is lost.

Times are told, and bounded only far above what they are on a quiet machine: `make chaos` judges them.
"""

import asyncio

import pytest
from rich.progress import Progress

from drills import DRILLS
from drills.stage import Stage

SEED = 20261124
GENEROUS_MS = 10_000.0


@pytest.mark.prove
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", DRILLS)
def test_nothing_is_lost(name: str):
    outcome = asyncio.run(DRILLS[name](Stage(SEED, True, Progress(disable=True))))
    print(f"seed {SEED}: {outcome}")
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert outcome.broken == []
    assert (outcome.lost, outcome.different, outcome.leaked) == (0, 0, 0)
    assert outcome.identical == outcome.streams
    assert max([0.0, *outcome.detect_ms, *outcome.cancel_ms]) < GENEROUS_MS
