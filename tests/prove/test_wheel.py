"""What users get: the wheel, built from this tree, holds what it must and works where this tree is not.

Two places: an environment of its own that borrows the libraries installed here (always), and a truly empty one whose
libraries come from a package index (LLAVA_GRPC_PROVE_FULL=1; it downloads torch).
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "llava_grpc"

pytestmark = [pytest.mark.prove, pytest.mark.timeout(1800)]


def run(command: Sequence[object], cwd: Path, timeout: float = 300) -> str:
    """Run to the end, without this tree on the path; its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LLAVA_GRPC_", "PYTHON"))}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as `make wheel` does but without fetching the build's own tools again."""
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT], folder)
    (built,) = folder.glob("*.whl")
    return built


def borrowing_environment(folder: Path) -> Path:
    """A fresh environment's Python. It finds the libraries installed here, but not this project's editable install:
    a .pth line adds a folder without running the .pth files inside it."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    own = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    (own / "borrowed.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}) + "\n")
    return python


def test_the_wheel_holds_code_types_contract_and_model(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"llava_grpc/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= names
    for name in (
        "llava_grpc/py.typed",
        "llava_grpc/v1/inference_pb2.py",
        "llava_grpc/v1/inference_pb2.pyi",
        "llava_grpc/v1/inference_pb2_grpc.py",
        "llava_grpc/v1/controller_pb2.py",
        "llava_grpc/v1/worker_pb2.py",
        "llava_grpc/demo/llava-demo/model.safetensors",
        "llava_grpc/demo/llava-demo/tokenizer.json",
        "llava_grpc/demo/pictures/four-shapes.png",
    ):
        assert name in names
    strangers = {name for name in names - expected if ".dist-info/" not in name}
    assert not strangers, "only the package goes into the wheel"
    assert wheel.stat().st_size < 20 * 1024 * 1024


def test_the_installed_wheel_brings_up_a_fleet_that_answers(wheel: Path, tmp_path: Path) -> None:
    python = borrowing_environment(tmp_path / "environment")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel], elsewhere)

    where = run([python, "-c", "import llava_grpc; print(llava_grpc.__file__)"], elsewhere).strip()
    assert Path(where).is_relative_to(tmp_path), "the wheel's, not this tree's"
    command = python.with_name("llava-grpc")
    said = run([command, "up", "--check", "--port", "0"], elsewhere)
    assert "2 workers ready" in said
    assert list(elsewhere.iterdir()) == [], "nothing is left in the folder it was started in"


@pytest.mark.skipif(
    os.environ.get("LLAVA_GRPC_PROVE_FULL") != "1", reason="downloads torch; set LLAVA_GRPC_PROVE_FULL=1"
)
def test_the_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    run([python, "-m", "pip", "install", "--quiet", "-c", constraints, wheel], tmp_path, timeout=1500)
    run([python, "-m", "pip", "check"], tmp_path)
    assert "2 workers ready" in run([python.with_name("llava-grpc"), "up", "--check", "--port", "0"], tmp_path)
