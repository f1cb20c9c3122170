"""What is said, for people and programs."""

import json
import math

from llava_grpc.sim.report import Report, text_of


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
