"""A fleet of real processes, shared by the tests of a module that do not disturb it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.processes import NodeProcess, start_controller, start_worker


@dataclass(frozen=True)
class ProcessFleet:
    """A controller and an echo worker."""

    controller: NodeProcess
    worker: NodeProcess


@pytest.fixture(scope="module")
def fleet() -> Iterator[ProcessFleet]:
    """Processes, ready to be asked."""
    with start_controller() as controller, start_worker(controller.address) as worker:
        yield ProcessFleet(controller, worker)
