"""The container files against the repository: flags, variables, paths and libraries that they name do exist.

No Docker engine is needed: files are parsed, nothing is built.
"""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from llava_grpc.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yaml"
NODES = ("controller", "worker")
NOT_FOR_A_CONTROLLER = {
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "pillow",
    "fastapi",
    "httpx",
    "prometheus-client",
    "uvicorn",
}
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Instruction and arguments, a line each; continued lines are joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def last(dockerfile: Path, name: str) -> str:
    """The arguments of the last instruction of a name."""
    return [arguments for instruction, arguments in instructions(dockerfile) if instruction == name][-1]


def flags(command: str) -> set[str]:
    """Every flag of `llava-grpc COMMAND`."""
    return {flag for parameter in COMMANDS[command].params for flag in parameter.opts}


def variables(command: str) -> set[str]:
    """Every environment variable that `llava-grpc COMMAND` reads."""
    return {str(parameter.envvar) for parameter in COMMANDS[command].params if getattr(parameter, "envvar", None)}


def services() -> dict[str, Any]:
    """The services of the compose file."""
    return yaml.safe_load(COMPOSE.read_text())["services"]


def entrypoint(node: str) -> list[str]:
    """What an image runs."""
    return json.loads(last(DOCKER / f"Dockerfile.{node}", "ENTRYPOINT"))


# --------------------------------------------------------------------------------------------------------- Dockerfiles


@pytest.mark.parametrize("node", NODES)
def test_an_image_runs_the_command_itself_as_nobody_in_particular(node: str) -> None:
    dockerfile = DOCKER / f"Dockerfile.{node}"
    assert entrypoint(node) == ["llava-grpc", node], "exec form, or SIGTERM goes to a shell"
    assert last(dockerfile, "USER") not in ("0", "root")
    health_check = last(dockerfile, "HEALTHCHECK").split("CMD", 1)[1]
    assert json.loads(health_check)[1] == "/usr/local/bin/healthcheck.py"
    default_port = next(one.default for one in COMMANDS[node].params if "--port" in one.opts)
    assert json.loads(health_check)[2] == f"127.0.0.1:{default_port}"
    assert last(dockerfile, "EXPOSE") == str(default_port)


@pytest.mark.parametrize("node", NODES)
def test_what_an_image_copies_is_there_and_is_sent_to_the_build(node: str) -> None:
    dockerfile = DOCKER / f"Dockerfile.{node}"
    ignore = (DOCKER / f"Dockerfile.{node}.dockerignore").read_text().split("\n")
    sent = [line.removeprefix("!") for line in ignore if line.startswith("!")]
    copied = [arguments.split() for instruction, arguments in instructions(dockerfile) if instruction == "COPY"]
    sources = [source for words in copied if not words[0].startswith("--from") for source in words[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source.removeprefix("./"), pattern) for pattern in sent), source


@pytest.mark.parametrize("node", NODES)
def test_variables_set_in_an_image_are_read_by_its_command(node: str) -> None:
    named = set(re.findall(r"\b(LLAVA_GRPC_\w+)=", last(DOCKER / f"Dockerfile.{node}", "ENV")))
    assert named
    assert named <= variables(node)


def test_the_controllers_image_holds_what_a_controller_loads_and_no_more() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=!~\[; ]", requirement, maxsplit=1)[0] for requirement in project["dependencies"]}
    run = next(text for name, text in instructions(DOCKER / "Dockerfile.controller") if "--constraint" in text)
    after = run.split("/tmp/constraints.txt", 1)[1].split("&&")[0]
    assert set(after.split()) == declared - NOT_FOR_A_CONTROLLER

    # None in sys.modules makes an import fail, as in an image without the library.
    missing = sorted((NOT_FOR_A_CONTROLLER - {"pillow"}) | {"PIL", "yaml", "prometheus_client"})
    program = f"""
import sys
sys.modules.update(dict.fromkeys({missing!r}))
import asyncio
from llava_grpc.cli.main import run
import llava_grpc.cli.serve
from llava_grpc.config import ControllerSettings, ServerSettings
from llava_grpc.controller.app import ControllerNode

async def live():
    node = ControllerNode(ControllerSettings(server=ServerSettings(port=0, grace=0)))
    await node.start()
    await node.stop()

asyncio.run(live())
assert run(["controller", "--help"]) == 0
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# -------------------------------------------------------------------------------------------------------------- compose


def test_services_use_images_flags_and_variables_that_exist() -> None:
    for name, service in services().items():
        dockerfile = (COMPOSE.parent / service["build"]["context"] / service["build"]["dockerfile"]).resolve()
        assert dockerfile.exists(), name
        command = entrypoint(dockerfile.suffix[1:])[1]
        used = {word.partition("=")[0] for word in service["command"] if word.startswith("--")}
        assert used <= flags(command), name
        assert set(service["environment"]) <= variables(command), name


def test_addresses_agree() -> None:
    for name, service in services().items():
        words = [part for word in service["command"] for part in word.split("=", 1)]
        given = dict(zip(words[::2], words[1::2], strict=True))
        assert service["healthcheck"]["test"][-1] == f"127.0.0.1:{given['--port']}"
        if name != "controller":
            assert given["--worker-address"] == f"{name}:{given['--port']}"
            host, _, port = given["--controller"].partition(":")
            assert services()[host]["command"] == ["--port", port]
            assert service["depends_on"] == {host: {"condition": "service_healthy"}}


def test_the_join_token_is_demanded_and_workers_have_a_gpu_each() -> None:
    claimed = []
    for name, service in services().items():
        assert service["environment"]["LLAVA_GRPC_JOIN_TOKEN"].startswith("${LLAVA_GRPC_JOIN_TOKEN:?"), name
        if name != "controller":
            (device,) = service["deploy"]["resources"]["reservations"]["devices"]
            assert device["capabilities"] == ["gpu"]
            claimed += device["device_ids"]
            source = service["volumes"][0].split(":-")[1].split("}")[0]
            assert (COMPOSE.parent / source).exists()
    assert len(claimed) == len(set(claimed)) == 2


# --------------------------------------------------------------------------------------------------------- health check


@pytest.fixture
def server() -> Iterator[tuple[health.HealthServicer, str]]:
    """A server with nothing but health, and its address."""
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(0).wait()


def probe(*arguments: str) -> tuple[int, str]:
    """Exit code and output of the health check."""
    script = str(DOCKER / "healthcheck.py")
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout.strip()


def test_the_health_check_tells_serving_from_not_serving_and_from_nobody(
    server: tuple[health.HealthServicer, str],
) -> None:
    servicer, address = server
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    assert probe(address) == (0, "SERVING")
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert probe(address) == (1, "NOT_SERVING")
    code, said = probe("127.0.0.1:1")
    assert code == 1
    assert "UNAVAILABLE" in said
