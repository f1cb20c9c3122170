"""`make run` as a whole stays under 3 GB."""

import psutil
import pytest

from tests.support.processes import NodeProcess

LIMIT = 3_000_000_000


@pytest.mark.prove
def test_a_controller_and_two_workers_with_the_bundled_model_stay_under_3_gb():
    with NodeProcess("up", "--port", "0", "--workers", "2") as up:
        up.wait_for(r"--controller (127\.0\.0\.1:\d+)")
        root = psutil.Process(up.pid)
        sizes = [process.memory_info().rss for process in (root, *root.children(recursive=True))]
    assert len(sizes) == 3
    print(f"resident, in MB: {[size // 1_000_000 for size in sizes]}, in all {sum(sizes) // 1_000_000}")
    assert sum(sizes) < LIMIT
