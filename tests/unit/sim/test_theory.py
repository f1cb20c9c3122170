"""The closed forms have the values that the literature has."""

import pytest

from llava_grpc.sim import theory

# load: random, two choices, central queue of 4, 8 and 16
KNOWN = {
    0.7: (3.333, 1.614, 1.357, 1.113, 1.027),
    0.9: (10.0, 2.614, 2.969, 1.877, 1.370),
    0.95: (20.0, 3.383, 5.457, 3.110, 1.975),
    0.99: (100.0, 5.432, 25.45, 13.10, 6.96),
}


@pytest.mark.parametrize("load", KNOWN)
def test_mean_responses(load: float):
    values = (
        theory.one_server(load),
        theory.two_choices(load),
        *(theory.central_queue(servers, load) for servers in (4, 8, 16)),
    )
    assert values == pytest.approx(KNOWN[load], abs=0.006, rel=5e-4)


def test_one_server_is_a_central_queue_of_one():
    assert theory.central_queue(1, 0.8) == pytest.approx(theory.one_server(0.8))
    assert theory.must_wait(1, 0.8) == pytest.approx(0.8)
