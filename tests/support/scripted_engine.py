"""An engine that does what the test says, when it says it."""

from __future__ import annotations

from collections.abc import Callable

from llava_grpc.config import EngineSettings
from llava_grpc.core.prompt import GenerationRequest
from llava_grpc.core.stream import ModelCard
from llava_grpc.engines.base import Engine, EngineStats, Progress, Sink


class ScriptedEngine(Engine):
    """Hands its sinks to the test. `prepare` runs inside submit, `load` inside start."""

    name = "scripted"

    def __init__(
        self, slots: int = 2, prepare: Callable[[], None] = lambda: None, load: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(EngineSettings())
        self._slots, self._prepare, self._load = slots, prepare, load
        self.sinks: list[Sink] = []
        self.cancelled: list[int] = []

    def start(self, progress: Progress) -> None:
        self._load()
        progress("ready")

    @property
    def card(self) -> ModelCard:
        return ModelCard("scripted")

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def speed(self) -> float:
        return 1.0

    def submit(self, request: GenerationRequest, sink: Sink) -> Ticket:
        self._prepare()
        self.sinks.append(sink)
        return Ticket(self, len(self.sinks) - 1)

    def stats(self) -> EngineStats:
        return EngineStats()

    def close(self) -> None: ...


class Ticket:
    def __init__(self, engine: ScriptedEngine, index: int) -> None:
        self._engine, self._index = engine, index

    def cancel(self) -> None:
        self._engine.cancelled.append(self._index)
