"""What the commands print."""

import io
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from llava_grpc.cli.options import address_of, addresses_of, engine_options
from llava_grpc.cli.output import plain, write_text
from llava_grpc.cli.sampling import logit_biases
from llava_grpc.cli.thumbnail import thumbnail
from llava_grpc.config import SettingsError
from llava_grpc.core.states import WorkerState
from llava_grpc.demo import SAMPLE


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal(), "a[31mb\tc\n"), (io.StringIO(), "a\x1b[31mb\tc\n")])
def test_a_terminal_gets_no_control_characters_from_a_model(
    stream: io.StringIO, shown: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "stdout", stream)
    write_text("a\x1b[31mb\tc\n")
    assert stream.getvalue() == shown


def test_biases_are_pairs_of_numbers():
    assert logit_biases(["5=1.5", "7=-100"]) == {5: 1.5, 7: -100.0}
    for wrong in (["5"], ["x=1"], ["5=y"], ["5=1", "5=2"]):
        with pytest.raises(SettingsError, match="--logit-bias"):
            logit_biases(wrong)


def test_bytes_become_text_in_json():
    assert plain([b"a", "猫".encode(), b"\xff"]) == ["a", "猫", "\ufffd"]


def test_values_become_json():
    @dataclass
    class Value:
        state: WorkerState
        seen: datetime
        names: tuple[str, ...]

    value = Value(WorkerState.ALIVE, datetime(2026, 1, 2, tzinfo=UTC), ("a",))
    assert plain([value]) == [{"state": "alive", "seen": "2026-01-02T00:00:00+00:00", "names": ["a"]}]


def test_a_thumbnail_is_as_wide_as_asked(tmp_path: Path):
    lines = thumbnail(SAMPLE.picture, columns=10).plain.splitlines()
    assert {len(line) for line in lines} == {10}
    assert len(lines) == 5


def test_addresses_as_llavas_documentation_writes_them():
    assert address_of("http://localhost:10000/") == address_of("localhost:10000") == "localhost:10000"
    assert addresses_of("http://here:1/, there:2") == ("here:1", "there:2")


def test_engine_options_are_pairs():
    assert engine_options(["a=1", "b=x=y"]) == {"a": "1", "b": "x=y"}
