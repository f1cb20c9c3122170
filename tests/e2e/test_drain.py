"""Draining as people and their tools do it: the command, and signals, on real processes."""

import json
import signal

import grpc
import pytest

from llava_grpc.errors import ShuttingDownError
from llava_grpc.rpc.status import from_rpc_error
from llava_grpc.v1.inference_pb2_grpc import InferenceServiceStub
from tests.e2e.test_cli import cli
from tests.support.processes import NodeProcess, start_controller, start_worker
from tests.support.wire import ask

STUCK = ("--engine-option", "hang_after=3")
LONG = ("--grace", "600")


def asking(address: str) -> NodeProcess:
    """A question whose answer has begun."""
    process = NodeProcess("generate", "hi", "--json", "--controller", address)
    process.wait_for('"end_offset": 3')
    return process


def test_an_idle_worker_is_drained_and_its_process_ends_well():
    with start_controller() as controller, start_worker(controller.address, *LONG) as worker:
        done = cli("drain", worker.address, "--controller", controller.address)
        assert done.returncode == 0
        assert done.stdout == f"{worker.address} has drained: every stream had come to its end\n"
        assert worker.wait() == 0
        assert "Traceback" not in worker.said
        controller.wait_for(f"worker {worker.address} left")
        again = cli("drain", worker.address, "--controller", controller.address)
        assert again.returncode == 1
        assert again.stderr.startswith("WORKER_NOT_FOUND: ")


def test_streams_that_are_left_are_counted_and_the_exit_code_tells_of_those_that_were_ended():
    with _alone() as worker:
        with asking(worker.address) as question:
            drain = NodeProcess("drain", worker.address, "--direct", "--json")
            drain.wait_for('"running": 1, "ended": 0')
            done = cli("drain", worker.address, "--direct", "--grace", "0.1")
            assert done.returncode == 3
            assert "1 stream left" in done.stderr
            assert "1 stream outlasted the grace time" in done.stdout
            assert drain.wait() == 3, "who waited before is told the same"
            last = json.loads(drain.said.splitlines()[-1])
            assert (last["running"], last["ended"], last["done"]) == (0, 1, True)
            question.wait_for('"event": "error"')  # it looked for somebody to go on, and there was nobody
            assert question.wait() == 1
        assert worker.wait() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_drains_and_a_second_one_ends_at_once(number: int, code: int):
    for second in (False, True):
        with _alone() as worker, asking(worker.address) as question:
            worker.send_signal(number)
            worker.wait_for("draining: 1 running")
            if second:
                worker.send_signal(number)
                assert worker.wait() == 128 + number
            else:
                question.send_signal(signal.SIGINT)  # which is how its stream ends
                assert worker.wait() == code


def test_a_controller_that_is_stopped_says_why_it_ends_a_stream():
    with start_controller("--grace", "0.1") as controller, start_worker(controller.address, *STUCK):
        with grpc.insecure_channel(controller.address) as channel:
            call = InferenceServiceStub(channel).Generate(ask(max_new_tokens=9), timeout=30)
            while next(call).delta.end_offset < 3:
                pass
            controller.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
        assert isinstance(from_rpc_error(caught.value), ShuttingDownError)  # type: ignore[arg-type]
        assert controller.wait() == 0


def test_a_stack_of_processes_answers():
    with start_controller() as parent, start_controller("--parent", parent.address) as child:
        with start_worker(child.address) as worker:
            parent.wait_for(f"worker {child.address} registered: models=echo")
            done = cli("generate", "hi", "--json", "--controller", parent.address)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout.splitlines()[0])["worker_address"] == worker.address
        parent.wait_for(f"worker {child.address} left")


def _alone() -> NodeProcess:
    """A worker without controllers that makes three tokens of an answer, and has all the time in the world."""
    node = NodeProcess("worker", "--port", "0", "--no-register", "--engine", "echo", *STUCK, *LONG)
    node.address = node.wait_for(r"serving echo at (\S+) with").group(1)
    return node
