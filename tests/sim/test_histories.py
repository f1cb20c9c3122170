"""Whole clusters in virtual time, over the real control-plane code, with seeded faults."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from llava_grpc.testing.histories import soak
from llava_grpc.testing.histories.faults import Kind
from llava_grpc.testing.histories.history import HistoryError, draw_script, run_seed
from tests.support.planted_bugs import PLANTED


@pytest.mark.timeout(540)
def test_a_thousand_histories_hold():
    tally = soak.Tally()
    for some in soak.run_many(range(1, 1001)):
        tally.add(some)
    assert tally.broken == {}, "\n".join(tally.broken.values())
    assert tally.histories == 1000
    assert tally.fewest_requests >= 20
    assert tally.fewest_events >= 200
    assert tally.fewest_faults >= 3
    assert set(tally.faults) == {kind.value for kind in Kind}
    assert tally.resumed > 100, "answers were cut in the middle, and went on"
    assert tally.outcomes["ok"] > 15_000


def test_a_script_has_the_cluster_that_was_asked_for():
    for seed in range(200):
        script = draw_script(seed)
        assert len(script.cluster.controllers) >= 2
        assert len(script.cluster.workers) >= 3
        assert len(script.orders) >= 20
        assert len(script.faults) >= 3


def test_a_seed_is_one_history_also_in_another_process_with_other_hashes():
    here = run_seed(11, verbose=True).log
    assert run_seed(11, verbose=True).log == here
    command = [sys.executable, "-m", "llava_grpc.testing.histories.soak", "--seed", "11", "--verbose"]
    for hashes in ("1", "2"):
        told = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=100, env={"PYTHONHASHSEED": hashes}
        )
        lines = told.stdout.splitlines()
        first = lines.index(here[0])
        assert lines[first : first + len(here)] == here


@pytest.fixture
def bug(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda name: PLANTED[name].plant(monkeypatch)


def test_a_failure_names_its_seed_and_can_be_seen_again(bug: Callable[[str], None]):
    bug("a_cancel_is_lost")
    with pytest.raises(HistoryError) as first:
        run_seed(1)
    with pytest.raises(HistoryError) as again:
        run_seed(first.value.seed, verbose=True)
    assert str(first.value) == str(again.value)
    assert "history 1: CANCELLED" in str(first.value)
    assert "--seed 1 --verbose" in str(first.value)
    assert again.value.log
    assert again.value.log[0].endswith("start c1#1")


def test_a_soak_says_what_went_wrong_and_fails(bug: Callable[[str], None], capsys: pytest.CaptureFixture[str]):
    bug("a_cancel_is_lost")
    assert soak.main(["--seed", "1", "--verbose"]) == 1
    told = capsys.readouterr().out
    assert "seed 1: controllers c1, c2" in told
    assert "CANCELLED" in told
    tally = soak.run_batch([1])
    assert list(tally.broken) == [1]
    assert "--seed 1 --verbose" in tally.broken[1]


def test_a_soak_counts(capsys: pytest.CaptureFixture[str]):
    assert soak.main(["--histories", "4", "--seed", "20", "--processes", "2"]) == 0
    told = capsys.readouterr().out
    assert "4 histories" in told
    assert "0 went wrong" in told
