"""`llava-grpc`: the commands, and what becomes of whatever goes wrong in them.

Exit codes: 0 done, 1 failed (the reason is on standard error), 2 a flag or setting makes no sense, 3 drained but not
without ending streams, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from llava_grpc import __version__
from llava_grpc.cli import ask, drain, explain, fleet, gateway, nodes, simulate
from llava_grpc.cli.output import say_error, say_failure
from llava_grpc.config import SettingsError
from llava_grpc.errors import LlavaGrpcError

app = typer.Typer(
    name="llava-grpc",
    help="Serve LLaVA-style vision-language models from many workers behind one address, and ask them.",
    epilog="Begin with: llava-grpc up",
    invoke_without_command=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
_SERVE, _ASK, _MEASURE = "Serve", "Ask", "Measure"
app.command("up", rich_help_panel=_SERVE)(nodes.up)
app.command("controller", rich_help_panel=_SERVE)(nodes.controller)
app.command("worker", rich_help_panel=_SERVE)(nodes.worker)
app.command("gateway", rich_help_panel=_SERVE)(gateway.gateway)
app.command("drain", rich_help_panel=_SERVE)(drain.drain)
app.command("generate", rich_help_panel=_ASK)(ask.generate)
app.command("models", rich_help_panel=_ASK)(fleet.models)
app.command("workers", rich_help_panel=_ASK)(fleet.workers)
app.command("explain", rich_help_panel=_MEASURE)(explain.explain)
app.command("simulate", rich_help_panel=_MEASURE)(simulate.simulate)


@app.callback()
def _root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if show_version:
        typer.echo(f"llava-grpc {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)


@app.command("version", rich_help_panel=_ASK)
def _version() -> None:
    """Show the versions of llava-grpc and of what it stands on."""
    from importlib.metadata import PackageNotFoundError, version
    from platform import python_version

    typer.echo(f"llava-grpc {__version__}")
    typer.echo(f"python {python_version()}")
    for package in ("grpcio", "protobuf", "torch", "transformers"):
        try:
            typer.echo(f"{package} {version(package)}")
        except PackageNotFoundError:
            typer.echo(f"{package} (not installed)")


def main() -> None:
    """The entry point."""
    sys.exit(run())


def run(args: list[str] | None = None) -> int:
    """Run a command line; the exit code."""
    # gRPC's own log repeats in its own words what is said here as an error. To be set before it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        code = app(args, prog_name="llava-grpc", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except LlavaGrpcError as error:
        say_error(error)
        return 1
    except SettingsError as error:
        say_failure(str(error))
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:  # `llava-grpc ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        # Usage errors of the parser: which class is an affair of typer's version, what they can do is not.
        if not (hasattr(error, "format_message") and hasattr(error, "exit_code")):
            raise
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "llava-grpc"
        say_failure(f"{error.format_message().rstrip('.')}. See `{command} --help`")
        return int(error.exit_code)
