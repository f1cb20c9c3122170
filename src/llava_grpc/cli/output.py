"""What the commands print, and how."""

from __future__ import annotations

import dataclasses
import json
import sys
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any

from llava_grpc.errors import LlavaGrpcError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@cache
def console() -> Console:
    """Standard output, for people."""
    from rich.console import Console

    return Console(highlight=False)


@cache
def error_console() -> Console:
    """Standard error, for people."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say_error(error: LlavaGrpcError) -> None:
    """Reason, cause and remedy."""
    from rich.text import Text

    text = Text.assemble((error.reason, "bold red"), (f": {error.cause}", "red"))
    if error.remedy:
        text.append(f"\n  {error.remedy}", "yellow")
    error_console().print(text, soft_wrap=True)


def say_failure(message: str) -> None:
    """One line."""
    from rich.text import Text

    error_console().print(Text.assemble(("error", "bold red"), (f": {message}", "red")), soft_wrap=True)


def print_json(value: object) -> None:
    """One line of JSON, at once."""
    sys.stdout.write(json.dumps(plain(value), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def plain(value: Any) -> Any:
    """Values as JSON has them: dataclasses are objects, enums their values, times ISO 8601.

    Bytes are UTF-8, what is not whole characters shown as such.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.isoformat() if hasattr(value, "isoformat") else value


def table_with(*columns: str) -> Table:
    """An empty table; columns whose names begin with > go to the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", no_wrap=True)
    return table


_HARMLESS = {**dict.fromkeys([*range(32), *range(127, 160)]), 9: "\t", 10: "\n"}


def write_text(text: str) -> None:
    """A piece of an answer, at once, to standard output; a terminal gets no control characters from a model."""
    sys.stdout.write(text.translate(_HARMLESS) if sys.stdout.isatty() else text)
    sys.stdout.flush()
