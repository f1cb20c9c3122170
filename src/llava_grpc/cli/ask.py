"""`llava-grpc generate`: a question, and the answer as it comes."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from llava_grpc.cli.options import NETWORK, ControllerAddress, Json, MaxMessageMb, addresses_of, mebibytes
from llava_grpc.cli.output import error_console, plain, print_json, write_text
from llava_grpc.cli.sampling import (
    FrequencyPenalty,
    IgnoreEos,
    LogitBias,
    Logprobs,
    MaxNewTokens,
    MinNewTokens,
    MinP,
    PresencePenalty,
    RepetitionPenalty,
    Seed,
    Stop,
    StopTokenIds,
    Temperature,
    TopK,
    TopP,
    logit_biases,
)
from llava_grpc.config import SettingsError
from llava_grpc.core.stream import Delta, Queued
from llava_grpc.errors import LlavaGrpcError

if TYPE_CHECKING:
    from rich.console import Console

    from llava_grpc.client import AnswerStream
    from llava_grpc.core.stream import Event, Finished


def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from standard input.")],
    image: Annotated[
        list[str],
        typer.Option("--image", "--image-file", "-i", metavar="FILE", help="A picture to ask about. Repeatable."),
    ] = [],  # noqa: B006 - typer copies it
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", envvar="LLAVA_GRPC_MODEL", help="Name or alias; not needed where only one is served."
        ),
    ] = "",
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="Instructions to the model.")] = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    presence_penalty: PresencePenalty = 0.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    logit_bias: LogitBias = [],  # noqa: B006
    max_new_tokens: MaxNewTokens = None,
    min_new_tokens: MinNewTokens = 0,
    seed: Seed = None,
    stop: Stop = [],  # noqa: B006
    stop_token_id: StopTokenIds = [],  # noqa: B006
    ignore_eos: IgnoreEos = False,
    logprobs: Logprobs = None,
    request_id: Annotated[
        str, typer.Option(metavar="NAME", help="Names the request in the nodes' logs. Default: drawn.")
    ] = "",
    controller: ControllerAddress = "127.0.0.1:21001",
    timeout: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="SECONDS", help="Give up after this long.", rich_help_panel=NETWORK),
    ] = None,
    max_message_mb: MaxMessageMb = 64,
    as_json: Json = False,
) -> int:
    """Ask a model; its answer is streamed to the terminal.

    With --json, one object a line: queued (while every worker is busy), started, deltas, finished; or error. Resumed
    says that another server went on with the answer.
    """
    import asyncio

    biases = logit_biases(logit_bias)
    if logprobs is not None and not as_json:
        raise SettingsError("--logprobs are shown with --json alone")
    text = sys.stdin.read() if prompt == "-" else prompt

    async def ask() -> None:
        from llava_grpc.client import AsyncClient

        began = time.monotonic()
        async with (
            AsyncClient(addresses_of(controller), max_message_bytes=mebibytes(max_message_mb)) as client,
            client.generate(
                text,
                image,
                system=system,
                model=model,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                max_new_tokens=max_new_tokens,
                seed=seed,
                stop=stop,
                stop_token_ids=stop_token_id,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                presence_penalty=presence_penalty,
                frequency_penalty=frequency_penalty,
                logit_bias=biases,
                min_new_tokens=min_new_tokens,
                ignore_eos=ignore_eos,
                logprobs=logprobs,
                request_id=request_id,
                timeout=timeout,
            ) as stream,
        ):
            if as_json:
                await show_json(stream)
            else:
                await show(stream, began, error_console())

    try:
        asyncio.run(ask())
    except LlavaGrpcError as error:
        if not as_json:
            raise
        print_json(error_object(error))
        return 1
    return 0


async def show_json(stream: AnswerStream) -> None:
    """Write what comes to standard output, as JSON."""
    resumed = 0
    async for event in stream.events():
        if stream.resumed > resumed:
            resumed = stream.resumed
            print_json({"event": "resumed", **plain(stream.answering)})
        print_json(event_object(event))


async def show(stream: AnswerStream, began: float, below: Console) -> Finished:
    """Write the answer as it comes to standard output, and what it took to `below`."""
    ends_line = True
    first_token = None
    try:
        async for event in stream.events():
            if isinstance(event, Queued):
                below.print(where_it_stands(event), style="dim", soft_wrap=True)
            elif isinstance(event, Delta):
                first_token = first_token or time.monotonic() - began
                write_text(event.text)
                ends_line = event.text.endswith("\n") if event.text else ends_line
    finally:
        if not ends_line:
            write_text("\n")  # also before an error
    finished = stream.finished
    assert finished is not None, "a stream without an error is complete"
    below.print(summary(stream, finished, time.monotonic() - began, first_token), style="dim", soft_wrap=True)
    return finished


def where_it_stands(queued: Queued) -> str:
    """One line for who waits."""
    place = "next in line" if queued.position == 0 else f"{queued.position} before it"
    about = "" if queued.estimated_wait is None else f", about {queued.estimated_wait:.0f} s"
    return f"every worker is busy; the request waits: {place}{about}"


def summary(stream: AnswerStream, finished: Finished, seconds: float, first_token: float | None) -> str:
    """One line: who answered, how much, how long."""
    usage, started = finished.usage, stream.answering
    asked = f"{usage.prompt_tokens:,} tokens in"
    if usage.image_tokens:
        asked += f" ({usage.image_tokens:,} of pictures)"
    parts = [asked, f"{usage.completion_tokens:,} out", f"{seconds:.2f} s"]
    if first_token is not None:
        parts.append(f"first token after {first_token:.2f} s")
    if finished.reason.value != "stop":
        parts.append({"length": "cut at the longest answer allowed"}.get(finished.reason.value, finished.reason.value))
    if started is not None:
        parts.append(f"{started.model} at {started.worker_address}")
    if resumed := stream.resumed + finished.resumes:
        parts.append(f"resumed {'once' if resumed == 1 else f'{resumed} times'}")
    return " · ".join(parts)


def event_object(event: Event) -> dict[str, object]:
    """A frame as JSON has it."""
    values = plain(event)
    if isinstance(event, Delta) and not event.logprobs:  # not asked for
        del values["logprobs"]
    return {"event": type(event).__name__.lower(), **values}


def error_object(error: LlavaGrpcError) -> dict[str, object]:
    """An error as JSON has it."""
    return {
        "event": "error",
        "reason": error.reason,
        "cause": error.cause,
        "remedy": error.remedy,
        "retryable": error.retryable,
        "retry_after": error.retry_after,
        "metadata": error.metadata,
    }
