"""Curves of a report as pictures."""

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from llava_grpc.cli.plot import LEAST, figure_of, longer, save_plot
from llava_grpc.sim.report import Report


def report(**curves: list[float]) -> Report:
    return Report(
        preset="a & b", seed=7, requests=1234, columns=(), rows=[], curves=curves, curve_label="time to first token"
    )


def test_svg_has_title_axes_and_a_name_for_each_curve_with_samples(tmp_path: Path):
    drawn = report(**{"one <1>": [0.01, 0.1, 1.0], "other": [5.0, math.nan], "none": [], "nan": [math.nan]})
    save_plot(drawn, tmp_path / "plot.svg")
    root = ElementTree.fromstring((tmp_path / "plot.svg").read_text(encoding="utf-8"))
    words = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {"a & b: 1,234 requests, seed 7", "time to first token, seconds", "one <1>", "other", "p50"} <= words
    assert "share of requests that took longer" in words
    assert not {"none", "nan"} & words


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_equal_reports_give_equal_files(ending: str, tmp_path: Path):
    for name in ("one", "other"):
        save_plot(report(one=[0.1, 0.2, 0.4]), (tmp_path / name).with_suffix(ending))
    assert (tmp_path / "one").with_suffix(ending).read_bytes() == (tmp_path / "other").with_suffix(ending).read_bytes()


def test_a_curve_is_the_share_that_took_longer():
    values, shares = longer([1.0, 2.0, 3.0, 4.0])
    assert values == [1.0, 2.0, 3.0, 4.0]
    assert shares == [0.75, 0.5, 0.25, 0.0]


def test_a_long_curve_keeps_its_tail_with_few_points():
    values, shares = longer([float(number) for number in range(1, 50_001)])
    assert len(values) <= 401
    assert shares[0] == pytest.approx(1.0, abs=1e-4)
    assert values[-1] == 50_000
    assert sum(share < 0.01 for share in shares) > 100


def test_a_plot_of_nothing_and_of_no_time_are_plots():
    assert figure_of(report()).axes[0].get_legend_handles_labels() == ([], [])
    [line], names = figure_of(report(quick=[0.0, 0.0])).axes[0].get_legend_handles_labels()
    assert names == ["quick"]
    assert set(line.get_xdata()) == {LEAST}
