"""The contract between a worker and what computes its answers.

Laws, which every engine keeps and `tests/integration/test_engine_contract.py` holds it to:

1. `submit` may block (decode pictures, apply the template, tokenize): it is called off the event loop, from several
   threads at once. Whatever is wrong with the request is raised from it, as a typed error, before anything is
   computed. It takes no more time for a bad request than for a good one.
2. After `submit` has returned, the sink gets: Began once, Deltas, then exactly one Ended or Failed, and nothing more.
   It is called from the engine's thread and returns at once.
3. `Ticket.cancel` returns at once, may be called at any time, from any thread, any number of times. The sink then gets
   Ended(CANCELLED) within one step, unless the request ended first.
4. A Delta's text is exactly the text of its tokens: a token whose text must be held back (half a character, a possible
   stop string) is held back with it.
5. One request's failure is its own.
6. A request that carries its seed, its options and the tokens that its stream has delivered goes on with exactly the
   events that the stream would still have had; where all were delivered, with its Ended alone. What cannot be such a
   log (too long, an end token in it, text after a stop string) is refused by `submit`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from llava_grpc.config import EngineSettings
from llava_grpc.core.prompt import GenerationRequest
from llava_grpc.core.stream import Delta, FinishReason, ModelCard, Usage
from llava_grpc.errors import LlavaGrpcError

ENTRY_POINT_GROUP = "llava_grpc.engines"


@dataclass(frozen=True, slots=True)
class Began:
    """The engine has begun to compute the request."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is complete, or was cancelled."""

    reason: FinishReason
    usage: Usage
    stop_sequence: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine could not go on with this request."""

    error: LlavaGrpcError


EngineEvent = Began | Delta | Ended | Failed
Sink = Callable[[EngineEvent], None]
Progress = Callable[[str], None]


class Ticket(Protocol):
    """A submitted request."""

    def cancel(self) -> None:
        """Stop computing it; see law 3."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A moment of an engine's life: requests computed now, requests accepted that wait for it, tokens made so far."""

    running: int = 0
    waiting: int = 0
    tokens_generated: int = 0


class Engine(ABC):
    """Serves one model. Made by `load_engine`; `start` before anything else, `close` at the end."""

    name: str

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings

    @abstractmethod
    def start(self, progress: Progress) -> None:
        """Load the model; blocks. `progress` is told in words what is being done.

        Raises:
            EngineStartError: the model cannot be loaded or served; the message says why and what to do.
        """

    @property
    @abstractmethod
    def card(self) -> ModelCard:
        """The model served."""

    @property
    @abstractmethod
    def slots(self) -> int:
        """Requests that it computes at once."""

    @property
    @abstractmethod
    def speed(self) -> float:
        """Tokens per second that it makes when full, measured or as set; relative between workers."""

    @property
    def kv_tokens(self) -> int:
        """Tokens that its cache of keys and values has room for, over all requests; 0 where unknown."""
        return 0

    @property
    def cached_pictures(self) -> int:
        """Pictures whose features it keeps at most; 0 where unknown."""
        return 0

    @abstractmethod
    def submit(self, request: GenerationRequest, sink: Sink) -> Ticket:
        """Take up a request (its seed is set); see laws 1 and 2.

        Raises:
            InvalidRequestError, NotFoundError: the request is at fault.
            AllSlotsTakenError: no room.
            EngineFailedError: the engine is not able to take requests.
        """

    @abstractmethod
    def stats(self) -> EngineStats:
        """How it is now; returns at once, from any thread."""

    @abstractmethod
    def close(self) -> None:
        """Stop computing and free what is held. Open requests get Ended(CANCELLED)."""


class EngineStartError(Exception):
    """An engine cannot start: unknown name, missing extra, unreadable model. For the one who starts the worker."""


def engine_names() -> list[str]:
    """Names of the engines that are installed."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)})


def load_engine(name: str, settings: EngineSettings) -> Engine:
    """The engine of that name, not yet started. Only now is its module, and with it its library, imported.

    Raises:
        EngineStartError: no engine has that name, its library is not installed, or the model's folder is not there.
    """
    path = settings.model_path
    if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
        raise EngineStartError(f"there is no folder {path}; give a checkpoint's folder or a hub name")
    points = [point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name == name]
    if not points:
        raise EngineStartError(f"no engine is named {name!r}; installed are: {', '.join(engine_names()) or 'none'}")
    try:
        engine_class: type[Engine] = points[0].load()
    except ImportError as error:
        raise EngineStartError(f"engine {name!r} needs a library that is not installed: {error}") from error
    return engine_class(settings)
