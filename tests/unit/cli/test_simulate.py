"""`llava-grpc simulate`: a table, JSON, a plot, and what makes no sense."""

import json
from pathlib import Path

import pytest

from llava_grpc.cli.main import run

SMALL = ["simulate", "heterogeneous", "--requests", "1000", "--strategy", "lottery", "--strategy", "llava"]


def test_a_table_with_its_seed(capsys: pytest.CaptureFixture[str]):
    assert run([*SMALL, "--seed", "3"]) == 0
    shown = capsys.readouterr().out
    assert "seed 3, 1,000 requests" in shown
    assert "lottery" in shown
    assert "llava" in shown


def test_json_and_a_plot(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert run([*SMALL, "--json", "--plot", str(tmp_path / "plot.png")]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["strategy"] for row in answer["rows"]] == ["lottery", "llava"] * 3
    assert answer["seed"] == 1
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_says_what_to_install_before_it_computes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run([*SMALL, "--plot", str(tmp_path / "plot.png")]) == 2
    assert "pip install 'llava-grpc[plots]'" in capsys.readouterr().err
    assert not (tmp_path / "plot.png").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["simulate", "nothing"], "no preset 'nothing'"),
        ([*SMALL, "--plot", "plot.pdf"], "ends neither in .png nor in .svg"),
        ([*SMALL, "--strategy", "best"], "no strategy 'best'"),
        (["simulate", "closed-forms", "--plot", "plot.svg"], "no distributions"),
        (["simulate", "reuse", "--replay", "load.jsonl"], "leave preset and such options out"),
        (["simulate", "--replay", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["simulate"], "no preset ''"),
    ],
)
def test_what_makes_no_sense_is_told_at_once(line: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    assert run(line) == 2
    assert says in " ".join(capsys.readouterr().err.split())
