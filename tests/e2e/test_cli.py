"""The command line as people use it: real processes, real signals, free ports."""

import json
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llava_grpc.demo import MODEL_PATH, SAMPLE
from tests.e2e.conftest import ProcessFleet
from tests.e2e.test_python_client import slot_is_free_again
from tests.support.processes import NodeProcess, start_controller, start_worker

SECONDS = 60.0


def cli(*arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLAVA_GRPC_")}
    return subprocess.run(
        [sys.executable, "-m", "llava_grpc", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        input=stdin,
        timeout=SECONDS,
        env={**inherited, **environment},
    )


def gone(pid: int) -> bool:
    """Whether no such process is left, or only what its parent has not yet read."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# ------------------------------------------------------------------------------------------------------------------ ask


def test_an_answer_is_text_on_standard_output_alone(fleet: ProcessFleet):
    address = fleet.controller.address
    done = cli("generate", "hi", "--image", str(SAMPLE.picture), "--max-new-tokens", "5", "--controller", address)
    assert done.returncode == 0
    assert len(done.stdout.split()) == 5
    assert done.stdout.endswith("\n")
    assert "(16 of pictures) · 5 out" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert cli("generate", "-", "--seed", "1", stdin="hi", LLAVA_GRPC_CONTROLLER=address).returncode == 0


def test_an_answer_as_json_events(fleet: ProcessFleet):
    flags = ("--max-new-tokens", "5", "--seed", "7", "--request-id", "mine", "--controller", fleet.controller.address)
    events: list[Any] = [json.loads(line) for line in cli("generate", "hi", "--json", *flags).stdout.splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["started", "finished"]
    assert {event["event"] for event in events[1:-1]} == {"delta"}
    assert (events[0]["request_id"], events[0]["seed"], events[-2]["end_offset"]) == ("mine", 7, 5)
    assert (events[-1]["reason"], events[-1]["usage"]["completion_tokens"]) == ("length", 5)


def test_every_option_of_sampling_reaches_the_engine(fleet: ProcessFleet):
    flags = ("--json", "--seed", "7", "--controller", fleet.controller.address)
    plain = [json.loads(line) for line in cli("generate", "hi", *flags).stdout.splitlines()]
    assert "logprobs" not in plain[1]
    texts = {"".join(event.get("text", "") for event in plain)}
    options = (
        ("--temperature", "0.5"),
        ("--top-p", "0.9"),
        ("--top-k", "5"),
        ("--min-p", "0.1"),
        ("--repetition-penalty", "1.2"),
        ("--presence-penalty", "0.1"),
        ("--frequency-penalty", "0.1"),
        ("--logit-bias", "5=1"),
    )
    events: list[Any] = []
    for option in options[::3]:
        events = [json.loads(line) for line in cli("generate", "hi", *option, *flags).stdout.splitlines()]
        texts.add("".join(event.get("text", "") for event in events))
    assert len(texts) == 1 + len(options[::3]), "the echo engine answers differently for each"
    more = [flag for option in options for flag in option] + [
        "--ignore-eos",
        "--min-new-tokens",
        "3",
        "--logprobs",
        "2",
    ]
    events = [json.loads(line) for line in cli("generate", "hi", *more, *flags).stdout.splitlines()]
    assert (events[-1]["reason"], events[-1]["usage"]["completion_tokens"]) == ("length", 256)
    assert {len(entry["top"]) for event in events[1:-1] for entry in event["logprobs"]} == {2}
    assert cli("generate", "hi", "--logprobs", "2", *flags[1:]).returncode == 2


def test_an_error_has_its_reason_and_code_1(fleet: ProcessFleet):
    done = cli("generate", "hi", "--model", "nobody's", "--controller", fleet.controller.address)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("MODEL_NOT_FOUND: ")
    assert len(done.stderr.splitlines()) == 2


def test_the_fleet_as_table_and_json(fleet: ProcessFleet):
    flags = ("--controller", f"http://{fleet.controller.address}/")
    (model,) = json.loads(cli("models", "--json", *flags).stdout)
    assert (model["name"], model["workers"]) == ("echo", 1)
    (worker,) = json.loads(cli("workers", "--json", *flags).stdout)
    assert (worker["address"], worker["state"], worker["models"]) == (fleet.worker.address, "alive", ["echo"])
    assert "echo" in cli("models", *flags).stdout
    table = cli("workers", *flags).stdout
    assert fleet.worker.address in table
    assert "alive" in table
    assert max(map(len, table.splitlines())) <= 80


def test_an_interrupted_question_ends_quietly_and_frees_the_slot():
    with start_controller() as controller, start_worker(controller.address, "--slots", "1", *_ENDLESS):
        asking = NodeProcess("generate", "hi", "--json", "--controller", controller.address)
        asking.wait_for('"delta"')
        asking.send_signal(signal.SIGINT)
        assert asking.wait() == 130
        assert "Traceback" not in asking.said
        assert slot_is_free_again(controller.address)


_ENDLESS = ("--engine-option", "tokens=100000", "--engine-option", "token_interval_ms=500")


def test_a_reader_that_goes_away_is_no_trace_back(fleet: ProcessFleet):
    done = subprocess.run(
        f"{sys.executable} -m llava_grpc models --json --controller {fleet.controller.address} | true",
        shell=True,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.stderr == ""


# ---------------------------------------------------------------------------------------------------------------- nodes


def test_a_worker_waits_for_its_controller_and_says_so():
    with start_controller() as first:
        address = first.address
    with NodeProcess("worker", "--port", "0", "--engine", "echo", "--controller", address) as worker:
        worker.wait_for(f"waiting for the controller at {address}")
        with NodeProcess("controller", "--port", address.rpartition(":")[2]):
            worker.wait_for("registered with")
        assert worker.stop() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_nodes_end_cleanly_on_signals(number: int, code: int):
    with start_controller() as controller, start_worker(controller.address) as worker:
        worker.send_signal(number)
        assert worker.wait() == code
        controller.wait_for(f"worker {worker.address} left")
        controller.send_signal(number)
        assert controller.wait() == code
        for node in (worker, controller):
            assert node.said.splitlines()[-1].endswith(" stopped")
            assert "Traceback" not in node.said


def test_a_worker_that_is_loading_ends_at_once():
    start_ms = ("--engine-option", "start_ms=60000")
    with NodeProcess("worker", "--port", "0", "--no-register", "--engine", "echo", *start_ms) as worker:
        worker.wait_for("starting the echo engine")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait() == 0


@pytest.mark.parametrize("command", [["controller"], ["worker", "--engine", "echo"], ["up", "--engine", "echo"]])
def test_a_taken_port_is_one_line_before_anything_is_loaded(command: list[str], fleet: ProcessFleet):
    done = cli(*command, "--port", fleet.controller.address.rpartition(":")[2])
    assert done.returncode == 2
    assert "error: cannot listen on" in done.stderr
    assert not re.search("Traceback|starting|serving", done.stderr + done.stdout)


def test_a_worker_that_is_refused_says_why_and_ends(fleet: ProcessFleet):
    taken = ("--worker-address", fleet.worker.address)
    done = cli("worker", "--port", "0", "--engine", "echo", "--controller", fleet.controller.address, *taken)
    assert done.returncode == 1
    assert "ADDRESS_TAKEN: " in done.stderr


def test_an_engine_that_cannot_start_says_why():
    done = cli("worker", "--port", "0", "--no-register", "--engine", "nonsense")
    assert done.returncode == 1
    assert "no engine is named 'nonsense'" in done.stderr


# ------------------------------------------------------------------------------------------------------------------- up

_UP = ("up", "--port", "0", "--engine", "echo")


def test_up_proves_itself_and_ends_when_told_to_check():
    done = cli(*_UP, "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 workers ready" in done.stdout
    assert "an answer came through" in done.stdout
    assert done.stdout.count("alive") == 2


def test_up_says_what_a_worker_that_cannot_start_said():
    done = cli(*_UP, "--engine-option", "nonsense=1")
    assert done.returncode == 1
    assert re.search(r"error: worker \d cannot run: engine echo has no option 'nonsense'", done.stderr)
    assert "Traceback" not in done.stderr


def test_up_starts_a_dead_worker_again_and_leaves_nobody_behind():
    with NodeProcess(*_UP, "--workers", "1") as up:
        up.wait_for("Ctrl-C")
        (worker,) = children(up.pid)
        os.kill(worker, signal.SIGKILL)
        up.wait_for("worker 1 died: killed by SIGKILL; starting it again")
        up.wait_for("worker 1 is back")
        workers = children(up.pid)
        assert len(workers) == 1
        up.send_signal(signal.SIGINT)
        assert up.wait() == 130
    assert all(gone(pid) for pid in [worker, *workers])


def test_no_worker_outlives_an_up_that_was_killed():
    with NodeProcess(*_UP) as up:
        up.wait_for("Ctrl-C")
        workers = [os.pidfd_open(pid) for pid in children(up.pid)]
        up.kill()
    assert len(workers) == 2
    for worker in workers:
        assert _ended(worker), "still there"
        os.close(worker)


def test_up_can_be_interrupted_while_its_workers_load():
    with NodeProcess(*_UP, "--engine-option", "start_ms=60000") as up:
        up.wait_for("worker 1: starting")
        up.wait_for("worker 2: starting")
        workers = children(up.pid)
        up.send_signal(signal.SIGTERM)
        assert up.wait() == 0
    assert all(gone(pid) for pid in workers)


@pytest.mark.skipif(not (MODEL_PATH / "model.safetensors").exists(), reason="the bundled model is not in this checkout")
def test_up_with_the_bundled_model_sees_what_is_in_the_picture():
    done = cli("up", "--port", "0", "--workers", "1", "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert SAMPLE.answer in done.stdout
    assert "right: that is what the picture shows" in done.stdout


def _ended(pidfd: int) -> bool:
    """Whether a process ends within the time that it has to."""
    return bool(select.select([pidfd], [], [], SECONDS)[0])
