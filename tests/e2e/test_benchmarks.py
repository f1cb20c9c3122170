"""The benchmarks run, and say what they promise to say; their figures are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from llava_grpc.core.strategies import STRATEGIES

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_bench_proxy_in_its_quick_form() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "bench_proxy.py"), "--quick"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    for key in ("proxied_tok_s", "direct_tok_s", "controller_cpu_us_per_token", "messages_per_token"):
        for kind in (result, result["steps"], result["one_token_a_message"]):
            assert kind[key] > 0, key
        for spread in (result["spread"], result["spread"]["steps"], result["spread"]["one_token_a_message"]):
            low, high = spread[key]
            assert low <= high
    assert result["one_token_a_message"]["messages_per_token"] == 1.0
    assert isinstance(result["added_ttft_ms_p50"], float)
    assert isinstance(result["added_ttft_ms_p99"], float)
    assert result["rounds"] == 1
    assert result["machine"]["cores"] >= 1
    assert result["date"]


def test_bench_control_in_its_quick_form() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "bench_control.py"), "--quick"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    for key in ("pick_us_p50", "pick_us_p99"):
        assert set(result[key]) == set(STRATEGIES)
        assert all(value > 0 for value in result[key].values())
    assert 0 <= result["heartbeat_core_share"] < 1
    assert 0 < result["heartbeat_core_share_1s"] < 1
    scale = result["scale"]
    assert (scale["live"], scale["live_of_a_worker"]) == (40, [2, 2])
    assert scale["ends"] == {"ok": 56}, "those held and those that waited"
    assert 0 < scale["refused_ms_p50"] <= scale["refused_ms_p99"]
    assert result["machine"]["cores"] >= 1
    assert result["date"]


def test_fit_service_in_its_quick_form(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "fit_service.py"), "--quick", "--output", str(tmp_path / "fit.json")],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads((tmp_path / "fit.json").read_text(encoding="utf-8"))
    assert set(result["costs"]) == {"request", "picture", "prompt_token", "step", "step_sequence"}
    assert all(cost >= 0 for cost in result["costs"].values())
    for table in ("fitted", "beyond", "open_loop"):
        assert result[table]
        for line in result[table].values():
            assert line["measured_ms"] > 0
            assert line["predicted_ms"] > 0
    assert result["machine"]["cores"] >= 1
    assert result["date"]
