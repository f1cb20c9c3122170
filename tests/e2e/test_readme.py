"""The README's commands, run as they stand, against a real fleet with the bundled model."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from llava_grpc.cli.main import app
from tests.support.processes import NodeProcess

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
MAKE, ASK, GRPCURL, GATEWAY, CONTROLLER, WORKERS = [code for language, code in BLOCKS if language == "bash"]
PYTHON, OPENAI = [code for language, code in BLOCKS if language == "python"]
DEFAULT_ADDRESS = "127.0.0.1:21001"
HEART = "a red heart"


@pytest.fixture(scope="module")
def fleet() -> Iterator[NodeProcess]:
    with NodeProcess("up", "--port", "0", "--workers", "1") as up:
        up.address = up.wait_for(r"--controller (127\.0\.0\.1:\d+)").group(1)
        yield up


def run(code: str, fleet: NodeProcess, *, shell: bool = True) -> str:
    """Run a block of the README against the fleet instead of the default address."""
    code = code.replace(DEFAULT_ADDRESS, fleet.address)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "LLAVA_GRPC_CONTROLLER": fleet.address,
    }
    command = ["bash", "-euo", "pipefail", "-c", code] if shell else [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_to_ask_answer(fleet: NodeProcess):
    out = run(ASK.replace("source .venv/bin/activate\n", ""), fleet)
    assert HEART in out
    assert '"finished"' in out
    assert "llava-demo" in out


def test_the_python_example_runs(fleet: NodeProcess):
    out = run(PYTHON, fleet, shell=False)
    assert re.search(r"stop: \d+ tokens", out)


def test_the_grpcurl_examples_run(fleet: NodeProcess):
    out = run(GRPCURL, fleet)
    for expected in ("llava_grpc.v1.InferenceService", "rpc Generate", '"llava-demo"', '"finished"', '"SERVING"'):
        assert expected in out


def test_the_openai_example_runs_through_a_gateway(fleet: NodeProcess):
    _, *arguments = shlex.split(GATEWAY.replace(DEFAULT_ADDRESS, fleet.address).replace("--port 8000", "--port 0"))
    with NodeProcess(*arguments) as gateway:
        url = gateway.wait_for(r"API at (http://\S+)/v1").group(1)
        assert HEART in run(OPENAI.replace("http://127.0.0.1:8000", url), fleet, shell=False)


def test_the_make_targets_exist():
    targets = re.findall(r"make ([a-z-]+)", README)
    assert {"run", "test"} <= set(targets)
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def gpu_commands() -> list[str]:
    inline = re.findall(r"`(llava-grpc [^`]+)`", README)
    return [line for line in [*(CONTROLLER + WORKERS).splitlines(), *inline] if line.startswith("llava-grpc ")]


@pytest.mark.parametrize("line", gpu_commands())
def test_the_commands_for_gpus_parse(line: str):
    """They cannot run here, but every command and flag in them exists."""
    command, *arguments = shlex.split(line)[1:]
    known = typer.main.get_command(app)
    assert command in known.commands, f"{line}: no such command"  # type: ignore[attr-defined]
    if "--help" not in arguments:
        known.commands[command].make_context(command, arguments)  # type: ignore[attr-defined]


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
