"""What is said, for people, programs and pictures."""

import json
import math
from xml.etree import ElementTree

from llava_grpc.sim.report import Report, svg, text_of


def report(**changes: object) -> Report:
    values: dict[str, object] = {
        "preset": "a & b",
        "seed": 7,
        "requests": 1234,
        "columns": ("strategy", "p99"),
        "rows": [("one", 1.5), ("other", math.nan)],
        "curves": {"one <1>": [0.01, 0.1, 1.0], "other": [5.0, math.nan], "none": []},
        "curve_label": "time",
    }
    return Report(**{**values, **changes})  # type: ignore[arg-type]


def test_json_has_objects_and_null_for_what_is_no_number():
    plain = report().as_dict()
    assert plain["rows"] == [{"strategy": "one", "p99": 1.5}, {"strategy": "other", "p99": None}]
    assert json.loads(json.dumps(plain, allow_nan=False))["seed"] == 7


def test_cells_for_people():
    assert [text_of(cell) for cell in (1.23456, 12345.6, math.nan, 12345, True, False, "x")] == [
        "1.235",
        "12,346",
        "-",
        "12,345",
        "yes",
        "no",
        "x",
    ]


def test_the_plot_is_svg_with_a_line_and_a_name_for_each_curve():
    root = ElementTree.fromstring(svg(report()))
    assert root.tag.endswith("svg")
    words = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"one <1>", "other", "time", "a & b, seed 7, 1,234 requests"} <= set(words)
    assert "none" not in words
    lines = [element.get("d", "") for element in root.iter() if element.get("stroke-width") == "2"]
    assert sum("L" in line for line in lines) == 2


def test_a_plot_of_nothing_is_a_plot():
    ElementTree.fromstring(svg(report(curves={})))
