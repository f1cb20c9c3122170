"""The command line without any node: what it loads, what it says of what makes no sense, how it ends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llava_grpc.cli.main import run

HEAVY = {"torch", "transformers", "grpc", "google", "PIL", "numpy", "asyncio", "fastapi", "uvicorn"}


COMMANDS = ("up", "controller", "worker", "gateway", "drain", "generate", "models", "workers", "explain", "simulate")
LIGHT = f"""
COMMANDS = {COMMANDS!r}
import llava_grpc, llava_grpc.demo
from llava_grpc.cli.main import run
run([])
run(["--help"])
run(["--version"])
run(["version"])
for command in COMMANDS:
    run([command, "--help"])
run(["up", "--port", "x"])
"""


def test_nothing_heavy_is_loaded_for_help():
    check = f"import sys; print('LOADED', *sorted({HEAVY!r} & {{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", f"{LIGHT}\n{check}"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["LOADED"]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    assert run([]) == 0
    bare = capsys.readouterr().out
    for command in (*COMMANDS, "version"):
        assert f" {command} " in bare
    assert run(["--help"]) == 0
    assert capsys.readouterr().out.split() == bare.split()


@pytest.mark.parametrize("command", [*COMMANDS, "version"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]):
    assert run([command, "--help"]) == 0
    assert "Usage: llava-grpc" in capsys.readouterr().out


def test_every_setting_of_a_node_can_come_from_the_environment(capsys: pytest.CaptureFixture[str]):
    from typer.main import get_command

    from llava_grpc.cli.main import app

    for command in ("controller", "worker"):
        for parameter in get_command(app).commands[command].params:  # type: ignore[attr-defined]
            if parameter.name in {"help", "supervised"}:
                continue
            assert parameter.envvar, f"{command} {parameter.name}"
            assert str(parameter.envvar).startswith("LLAVA_GRPC_")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "nonsense"),
        (["controller", "--port", "x"], "--port"),
        (["controller", "--port", "70000"], "70000"),
        (["controller", "--nonsense"], "--nonsense"),
        (["controller", "--strategy", "nonsense"], "nonsense"),
        (["controller", "--host", "0.0.0.0"], "--join-token"),
        (["controller", "--heartbeat-expiry", "1"], "expiry"),
        (["controller", "--log-level", "loud"], "loud"),
        (["worker", "--engine-option", "nonsense"], "NAME=VALUE"),
        (["worker", "--engine-option", "a=1", "--engine-option", "a=2"], "twice"),
        (["worker", "--speed", "nan"], "speed"),
        (["worker", "--page-size", "0"], "--page-size"),
        (["up", "--workers", "0"], "--workers"),
        (["up", "--strategy", "nonsense"], "nonsense"),
        (["generate"], "prompt"),
        (["models", "--controller", "nonsense"], "HOST:PORT"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
):
    assert run(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert "Traceback" not in said.err


def test_an_environment_variable_that_makes_no_sense_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LLAVA_GRPC_PORT", "x")
    assert run(["controller"]) == 2
    assert "LLAVA_GRPC_PORT" in capsys.readouterr().err


def test_nobody_there_is_an_error_with_reason_cause_and_remedy(capsys: pytest.CaptureFixture[str]):
    assert run(["models", "--controller", "127.0.0.1:1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("SERVER_UNREACHABLE: no answer from 127.0.0.1:1")
    assert "llava-grpc up" in error


def test_an_error_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    missing = str(tmp_path / "missing.png")
    assert run(["generate", "hi", "--image", missing, "--json"]) == 1
    said = capsys.readouterr()
    error = json.loads(said.out)
    assert (error["event"], error["reason"], error["retryable"]) == ("error", "IMAGE_INVALID", False)
    assert missing in error["cause"]
    assert said.err == ""


def test_version(capsys: pytest.CaptureFixture[str]):
    from llava_grpc import __version__

    assert run(["--version"]) == 0
    assert run(["version"]) == 0
    assert capsys.readouterr().out.split()[:4] == ["llava-grpc", __version__] * 2
