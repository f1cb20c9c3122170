"""Registrations to play with."""

from collections.abc import Callable
from typing import Any

import pytest

from llava_grpc.core.stream import ModelCard
from llava_grpc.core.worker import Registration

Register = Callable[..., Registration]


@pytest.fixture
def registration() -> Register:
    def make(port: int = 1, model: str = "m", aliases: tuple[str, ...] = (), **changes: Any) -> Registration:
        values: dict[str, Any] = {
            "address": f"127.0.0.1:{port}",
            "incarnation": f"life-of-{port}",
            "cards": (ModelCard(model, aliases),),
            "speed": 1.0,
            "slots": 4,
        }
        return Registration(**{**values, **changes})

    return make
