"""Strategies by name: installed ones through the entry-point group `llava_grpc.strategies`, others as `module:Class`.

An installed package adds one with

    [project.entry-points."llava_grpc.strategies"]
    mine = "my_package.dispatch:MyStrategy"

where MyStrategy is a function of `core.strategies.Strategy`'s shape, or a class whose instances are.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from llava_grpc.config import SettingsError
from llava_grpc.core.strategies import STRATEGIES, Strategy

ENTRY_POINT_GROUP = "llava_grpc.strategies"


def strategy_names() -> list[str]:
    """Our own, and those that installed packages bring."""
    return [*STRATEGIES, *sorted(point.name for point in _installed() if point.name not in STRATEGIES)]


def load_strategy(name: str) -> Strategy:
    """The strategy of that name, or at that `module:Class`.

    Raises:
        SettingsError: there is none, or it cannot be made.
    """
    if name in STRATEGIES:
        return STRATEGIES[name]
    found = _at(name) if ":" in name else _named(name)
    if isinstance(found, type):
        try:
            found = found()
        except Exception as error:
            raise SettingsError(f"the strategy {name!r} cannot be made: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise SettingsError(f"{name!r} is no strategy: it cannot be called")
    strategy: Strategy = found
    return strategy


def _installed() -> list[EntryPoint]:
    return list(entry_points(group=ENTRY_POINT_GROUP))


def _named(name: str) -> Any:
    for point in _installed():
        if point.name == name:
            try:
                return point.load()
            except Exception as error:
                raise SettingsError(f"the strategy {name!r} cannot be loaded: {error}") from error
    raise SettingsError(
        f"no strategy is named {name!r}; there are {', '.join(strategy_names())}, or your own as module:Class"
    )


def _at(path: str) -> Any:
    module_name, _, attribute = path.partition(":")
    try:
        return getattr(import_module(module_name), attribute)
    except Exception as error:
        raise SettingsError(f"there is no strategy at {path!r}: {error}") from error
