"""What the fitted costs say of the engine that they were fitted to."""

import pytest

from llava_grpc.sim.fitted import DEMO_CPU, INVENTED_7B


def test_a_prompt_takes_about_a_step_and_its_length():
    assert DEMO_CPU.reading(13) == pytest.approx(0.0063, rel=0.01)  # measured: 6.33 ms
    assert DEMO_CPU.reading(79, new_pictures=1) == pytest.approx(0.0243, rel=0.01)  # 24.28 ms


def test_the_more_run_the_longer_a_step_but_not_a_token():
    for costs in (DEMO_CPU, INVENTED_7B):
        steps = [costs.stepping(running) for running in (1, 4, 16)]
        assert steps == sorted(steps)
        assert steps[2] < 4 * steps[1] < 16 * steps[0]
