"""A controller that is stopped for longer than its workers may be silent, as real processes."""

import signal
import time

from tests.support.processes import start_controller, start_worker

INTERVAL, EXPIRY = 0.6, 3.0


def test_a_controller_that_was_stopped_keeps_its_fleet():
    flags = ("--heartbeat-interval", str(INTERVAL), "--heartbeat-expiry", str(EXPIRY))
    with start_controller(*flags) as controller, start_worker(controller.address) as worker:
        controller.wait_for(r"worker \S+ registered")
        controller.send_signal(signal.SIGSTOP)
        time.sleep(EXPIRY + 1)  # the stall itself
        controller.send_signal(signal.SIGCONT)
        controller.wait_for(r"was stalled for \d+\.\d s: nobody is dropped for the next 0.6 s")
        with start_worker(controller.address) as second:  # seconds pass: the grace is over
            second.kill()
            controller.wait_for(rf"worker {second.address} was dropped: no heartbeat for 3 s")
        assert f"{worker.address} was dropped" not in controller.said
        assert controller.said.count(f"worker {worker.address} registered") == 1
