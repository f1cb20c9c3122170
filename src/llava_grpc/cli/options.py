"""Options that several commands share. Each can also be set by the environment variable that its help names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from llava_grpc.config import SettingsError

NETWORK, FLEET, STACK, MODEL, ENGINE, OUTPUT = "Network", "Fleet", "Stacked controllers", "Model", "Engine", "Output"

ControllerAddress = Annotated[
    str,
    typer.Option(
        "--controller",
        envvar="LLAVA_GRPC_CONTROLLER",
        metavar="HOST:PORT[,...]",
        help="Whom to ask: a controller, or a single worker; or several, with commas: the next one is asked where one "
        "fails.",
        rich_help_panel=NETWORK,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of text for people.", rich_help_panel=OUTPUT)]
LogLevel = Annotated[
    str,
    typer.Option(
        envvar="LLAVA_GRPC_LOG_LEVEL",
        metavar="LEVEL",
        help="debug, info, warning or error.",
        rich_help_panel=OUTPUT,
    ),
]
Host = Annotated[
    str,
    typer.Option(
        envvar="LLAVA_GRPC_HOST",
        help="Interface to listen on; 0.0.0.0 for all.",
        rich_help_panel=NETWORK,
    ),
]
Port = Annotated[
    int,
    typer.Option(envvar="LLAVA_GRPC_PORT", metavar="PORT", help="Port; 0 takes any free one.", rich_help_panel=NETWORK),
]
MaxMessageMb = Annotated[
    int,
    typer.Option(
        envvar="LLAVA_GRPC_MAX_MESSAGE_MB",
        metavar="MIB",
        min=1,
        max=1024,
        help="The largest message; a request carries its pictures.",
        rich_help_panel=NETWORK,
    ),
]
JoinToken = Annotated[
    str,
    typer.Option(
        envvar="LLAVA_GRPC_JOIN_TOKEN",
        metavar="SECRET",
        help="What workers show to join. Better in the environment than here, where `ps` shows it.",
        rich_help_panel=FLEET,
    ),
]
Grace = Annotated[
    float,
    typer.Option(
        envvar="LLAVA_GRPC_GRACE",
        metavar="SECONDS",
        min=0,
        help="At a clean stop, running streams may go on for so long; then they are ended, to go on elsewhere.",
        rich_help_panel=FLEET,
    ),
]
Strategy = Annotated[
    str,
    typer.Option(
        "--strategy",
        "--dispatch-method",
        envvar="LLAVA_GRPC_STRATEGY",
        metavar="NAME",
        help="How a worker is chosen: expected_first_token, cache_affinity, shortest_queue, power_of_two, lottery, an "
        "installed one, or your own as module:Class. See docs/dispatch.md.",
        rich_help_panel=FLEET,
    ),
]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        envvar="LLAVA_GRPC_ENGINE",
        metavar="NAME",
        help="What computes the answers: transformers, or echo (no model, for trying things out).",
        rich_help_panel=ENGINE,
    ),
]
EngineOptions = Annotated[
    list[str],
    typer.Option(
        "--engine-option",
        envvar="LLAVA_GRPC_ENGINE_OPTION",
        metavar="NAME=VALUE",
        help="An option of this engine alone. Repeatable.",
        rich_help_panel=ENGINE,
    ),
]
ModelPath = Annotated[
    str,
    typer.Option(
        envvar="LLAVA_GRPC_MODEL_PATH",
        metavar="PATH",
        help="Folder of a checkpoint, or a hub name. Default: the bundled demo model.",
        rich_help_panel=MODEL,
    ),
]
ModelName = Annotated[
    str,
    typer.Option(
        envvar="LLAVA_GRPC_MODEL_NAME",
        metavar="NAME",
        help="Name to serve under. Default: the last part of the path.",
        rich_help_panel=MODEL,
    ),
]
DType = Annotated[
    str,
    typer.Option(
        envvar="LLAVA_GRPC_DTYPE",
        metavar="TYPE",
        help="auto (bfloat16 on a GPU, float32 on a CPU), or a torch dtype.",
        rich_help_panel=ENGINE,
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        envvar="LLAVA_GRPC_THREADS",
        min=0,
        metavar="N",
        help="CPU threads of a worker. 0: one for a small model, else all cores, shared by the workers of `up`.",
        rich_help_panel=ENGINE,
    ),
]
Slots = Annotated[
    int,
    typer.Option(
        "--slots",
        "--limit-model-concurrency",
        envvar="LLAVA_GRPC_SLOTS",
        min=0,
        metavar="N",
        help="Requests that a worker answers at once. 0: the engine's choice.",
        rich_help_panel=ENGINE,
    ),
]


def mebibytes(count: int) -> int:
    """In bytes."""
    return count * 1024 * 1024


def address_of(text: str) -> str:
    """HOST:PORT, also from the `http://HOST:PORT` that LLaVA's documentation writes."""
    return text.removeprefix("http://").rstrip("/")


def addresses_of(text: str) -> tuple[str, ...]:
    """The same of several, with commas between."""
    return tuple(address_of(part.strip()) for part in text.split(","))


def engine_options(pairs: list[str]) -> Mapping[str, str]:
    """`name=value` pairs as a mapping.

    Raises:
        SettingsError: one is not such a pair, or a name comes twice.
    """
    options: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise SettingsError(f"--engine-option {pair!r} is not NAME=VALUE")
        if name in options:
            raise SettingsError(f"--engine-option {name} is given twice")
        options[name] = value
    return options
