"""`llava-grpc generate` with two controllers, the first of which is killed in mid-answer."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.processes import NodeProcess, start_controller, start_worker

SECONDS = 60.0
HANGS_AFTER = 5
OPTIONS = ("--seed", "7", "--temperature", "0.8", "--max-new-tokens", "12", "--timeout", str(SECONDS))


@pytest.fixture
def controllers() -> Iterator[tuple[NodeProcess, NodeProcess]]:
    """Two with a worker each; the first one's stops making tokens in mid-answer."""
    with ExitStack() as stack:
        first, second = stack.enter_context(start_controller()), stack.enter_context(start_controller())
        stack.enter_context(start_worker(first.address, "--engine-option", f"hang_after={HANGS_AFTER}"))
        stack.enter_context(start_worker(second.address))
        yield first, second


def generate(*flags: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLAVA_GRPC_")}
    return subprocess.Popen(
        [sys.executable, "-m", "llava_grpc", "generate", "hi", *OPTIONS, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=inherited,
    )


def events(said: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.splitlines()]


def text_of(told: list[dict[str, Any]]) -> str:
    return "".join(event["text"] for event in told if event["event"] == "delta")


def test_an_answer_is_shown_once_though_its_controller_is_killed(controllers: tuple[NodeProcess, NodeProcess]):
    first, second = controllers
    undisturbed, _ = generate("--json", "--controller", second.address).communicate(timeout=SECONDS)
    whole = events(undisturbed)
    both = ("--controller", f"http://{first.address}/, {second.address}")
    in_text, in_json = generate(*both), generate("--json", *both)
    assert in_text.stdout is not None
    assert in_json.stdout is not None
    told: list[dict[str, Any]] = []
    while not told or told[-1].get("end_offset") != HANGS_AFTER:
        told += events(in_json.stdout.readline())
    in_text_first = in_text.stdout.read(len(text_of(told)))
    first.kill()
    rest, complaints = in_json.communicate(timeout=SECONDS)
    told += events(rest)
    assert (in_json.returncode, complaints) == (0, "")
    assert text_of(told) == text_of(whole)
    assert [event["event"] for event in told if event["event"] != "delta"] == ["started", "resumed", "finished"]
    [resumed] = [event for event in told if event["event"] == "resumed"]
    assert (resumed["attempt"], resumed["worker_address"]) == (1, whole[0]["worker_address"])
    assert told[-1]["usage"] == whole[-1]["usage"]
    in_text_rest, summary = in_text.communicate(timeout=SECONDS)
    assert in_text_first + in_text_rest == text_of(whole) + "\n"
    assert "resumed once" in summary
    for command in ("models", "workers"):
        done = subprocess.run(
            [sys.executable, "-m", "llava_grpc", command, "--json"],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env={**os.environ, "LLAVA_GRPC_CONTROLLER": f"{first.address},{second.address}"},
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert len(json.loads(done.stdout)) == 1
