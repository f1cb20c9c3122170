"""Ten thousand clusters in virtual time, others than `make test` plays."""

import pytest

from llava_grpc.testing.histories import soak

pytestmark = pytest.mark.prove


@pytest.mark.timeout(7200)
def test_ten_thousand_histories_hold():
    tally = soak.Tally()
    for some in soak.run_many(range(1_000_001, 1_010_001), processes=2):
        tally.add(some)
    assert tally.broken == {}, "\n".join(tally.broken.values())
    assert tally.histories == 10_000
