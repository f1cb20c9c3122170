"""`llava-grpc simulate`: dispatch in virtual time. No node is needed, nothing is served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llava_grpc.cli.options import OUTPUT, Json
from llava_grpc.cli.output import console, error_console, print_json
from llava_grpc.cli.plot import check_plot, save_plot
from llava_grpc.config import SettingsError

if TYPE_CHECKING:
    from rich.table import Table

    from llava_grpc.sim.report import Report


def simulate(
    preset: Annotated[
        str,
        typer.Argument(
            help="closed-forms, failures, heterogeneous, no-reuse, overload, reuse, scale or tenants; see "
            "docs/simulator.md. None with --replay."
        ),
    ] = "",
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="In place of a preset, the load of a real fleet: what `explain --export` has written."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Which model's requests to replay, where the file has several.")
    ] = "",
    strategy: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="A strategy to compare. Repeatable. Default: the preset's own choice."),
    ] = [],  # noqa: B006 - typer copies it
    arrivals: Annotated[
        str, typer.Option(metavar="KIND", help="How requests come: poisson, or bursty (four times the rate at times).")
    ] = "poisson",
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal results.")] = 1,
    requests: Annotated[
        int | None, typer.Option(min=1000, help="Requests to simulate for each strategy. Default: the preset's own.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw the distributions into this .png or .svg (extra: plots).", rich_help_panel=OUTPUT
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Try dispatch out in virtual time: the controller's own code against simulated workers and load.

    The same preset, strategies, seed and number of requests give the same result, on any machine.
    """
    if plot is not None:
        check_plot(plot)
    if replay is None:
        report = _answer(preset, strategy, arrivals, seed, requests, plots=plot is not None)
    else:
        if preset or requests is not None or arrivals != "poisson":
            raise SettingsError("a recording has its own requests and arrivals; leave preset and such options out")
        report = _replayed(replay, model, strategy, seed)
    if plot is not None:
        save_plot(report, plot)
    if as_json:
        print_json(report.as_dict())
        return
    console().print(f"[bold]{report.preset}[/], seed {report.seed}, {report.requests:,} requests")
    console().print(table_of(report))
    for note in report.notes:
        console().print(f"[dim]{note}[/]")


def _answer(
    preset: str, strategies: list[str], arrivals: str, seed: int, requests: int | None, *, plots: bool
) -> Report:
    """A preset's, with a progress bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from llava_grpc.sim.presets import PRESETS, Question, ask

    if preset not in PRESETS:
        raise SettingsError(f"there is no preset {preset!r}; use one of {', '.join(PRESETS)}")
    chosen = PRESETS[preset]
    if plots and not chosen.plots:
        raise SettingsError(f"{preset} has no distributions to plot; leave --plot out")
    count = chosen.requests if requests is None else requests
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=error_console(), transient=True, disable=not error_console().is_terminal) as bar:
        total = count * chosen.jobs_a_request(len(strategies or chosen.strategies))
        task = bar.add_task(f"{preset}, seed {seed}", total=round(total))
        return ask(
            preset,
            Question(
                seed=seed,
                requests=count,
                strategies=tuple(strategies),
                arrivals=arrivals,
                progress=lambda done: bar.advance(task, done),
            ),
        )


def _replayed(path: Path, model: str, strategies: list[str], seed: int) -> Report:
    """A recording's: some thousand requests take a moment."""
    from llava_grpc.sim.questions import Question
    from llava_grpc.sim.replay import read, replay

    try:
        with path.open(encoding="utf-8") as lines:
            recording = read(lines, model)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    return replay(recording, Question(seed=seed, requests=len(recording.requests), strategies=tuple(strategies)))


def table_of(report: Report) -> Table:
    """Its rows; numbers to the right."""
    from rich import box
    from rich.table import Table

    from llava_grpc.sim.report import text_of

    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(report.columns):
        title = name.replace("_percent", " %").replace("_", " ")
        if any(not isinstance(row[number], str) for row in report.rows):
            table.add_column(title, justify="right")
        else:
            table.add_column(title, min_width=max(len(str(row[number])) for row in report.rows), no_wrap=True)
    for row in report.rows:
        table.add_row(*(text_of(cell) for cell in row))
    return table
