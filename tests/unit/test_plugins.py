"""Strategies by name and by path."""

from importlib.metadata import entry_points
from random import Random

import pytest

from llava_grpc.config import SettingsError
from llava_grpc.core.demand import Demand
from llava_grpc.core.strategies import STRATEGIES, Pick, Snapshot
from llava_grpc.plugins import ENTRY_POINT_GROUP, load_strategy, strategy_names


class First:
    """Always the first: a strategy as somebody might bring along."""

    def __call__(self, candidates: Snapshot, demand: Demand, random: Random) -> Pick:
        return Pick(0, candidates.queue, "requests")


class Broken:
    def __init__(self) -> None:
        raise RuntimeError("no table")


NOT_ONE = 7


def test_ours_are_entry_points_of_the_package():
    assert {point.name: point.load() for point in entry_points(group=ENTRY_POINT_GROUP)}.items() >= STRATEGIES.items()
    assert strategy_names()[: len(STRATEGIES)] == list(STRATEGIES)


def test_by_name():
    assert load_strategy("lottery") is STRATEGIES["lottery"]
    with pytest.raises(SettingsError, match=r"no strategy is named 'lotery'.*shortest_queue.*module:Class"):
        load_strategy("lotery")


def test_by_path():
    assert isinstance(load_strategy(f"{__name__}:First"), First)
    assert load_strategy("llava_grpc.core.strategies:lottery") is STRATEGIES["lottery"]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("no.such.module:Class", "No module named"),
        (f"{__name__}:Missing", "no attribute"),
        (f"{__name__}:NOT_ONE", "cannot be called"),
        (f"{__name__}:Broken", "no table"),
        (":", "there is no strategy"),
    ],
)
def test_what_cannot_be_used_says_why(path: str, why: str):
    with pytest.raises(SettingsError, match=why):
        load_strategy(path)
