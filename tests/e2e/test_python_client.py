"""Programs that use the client without asyncio, and end in every way that programs do."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from llava_grpc import Client
from llava_grpc.errors import AllSlotsTakenError
from tests.support.processes import start_controller, start_worker

SECONDS = 60.0
PROGRAM = """
import sys
from llava_grpc import Client

client = Client()
deltas = iter(client.generate("hi"))
next(deltas)
print("streaming", flush=True)
match sys.argv[1]:
    case "interrupt":
        for _ in deltas:
            pass
    case "exit":
        sys.exit(3)
    case "error":
        raise ValueError("the program's own")
"""


@pytest.mark.parametrize(
    ("way", "code", "last_words"),
    [
        ("fall off the end", 0, ""),
        ("exit", 3, ""),
        ("error", 1, "ValueError: the program's own"),
        ("interrupt", -signal.SIGINT, "KeyboardInterrupt"),
    ],
)
def test_a_program_ends_as_it_wants_to_and_its_request_with_it(tmp_path: Path, way: str, code: int, last_words: str):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    slow = ("--engine-option", "tokens=100000", "--engine-option", "token_interval_ms=500", "--slots", "1")
    with start_controller() as controller, start_worker(controller.address, *slow):
        running = subprocess.Popen(
            [sys.executable, "-W", "error", str(program), way],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "LLAVA_GRPC_CONTROLLER": controller.address},
        )
        assert running.stdout is not None
        assert running.stdout.readline() == "streaming\n"
        if way == "interrupt":
            running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=SECONDS)
        assert running.returncode == code
        assert said.strip().splitlines()[-1:] == ([last_words] if last_words else [])
        assert slot_is_free_again(controller.address)


def slot_is_free_again(address: str) -> bool:
    """Whether the fleet's only slot is soon to be had."""
    deadline = time.monotonic() + 10
    with Client(address, timeout=10) as client:
        while time.monotonic() < deadline:
            with suppress(AllSlotsTakenError):
                return bool(client.ask("hi", max_new_tokens=1))
    return False


def test_the_example_runs():
    example = Path(__file__).parents[2] / "examples" / "python_client.py"
    with start_controller() as controller, start_worker(controller.address, "--model-name", "llava-demo"):
        done = subprocess.run(
            [sys.executable, str(example)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env={**os.environ, "LLAVA_GRPC_CONTROLLER": controller.address},
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("models: llava-demo\n")


def test_the_example_without_python_runs():
    example = Path(__file__).parents[2] / "examples" / "grpcurl.sh"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with start_controller() as controller, start_worker(controller.address):
        done = subprocess.run(
            [str(example)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env={**os.environ, "LLAVA_GRPC_CONTROLLER": controller.address, "PATH": path},
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert "FINISH_REASON_STOP" in done.stdout
