"""`llava-grpc up`, `controller` and `worker`: from flags and environment variables to settings, checked here."""

from __future__ import annotations

from typing import Annotated

import typer

from llava_grpc import logs
from llava_grpc.cli import options
from llava_grpc.cli.options import ENGINE, FLEET, MODEL, NETWORK, OUTPUT, STACK, address_of, engine_options, mebibytes
from llava_grpc.config import (
    DEFAULT_CONTROLLER_PORT,
    DEFAULT_STRATEGY,
    DEFAULT_WORKER_PORT,
    ControllerSettings,
    EngineSettings,
    ServerSettings,
    WorkerSettings,
)


def controller(
    host: options.Host = "127.0.0.1",
    port: options.Port = DEFAULT_CONTROLLER_PORT,
    strategy: options.Strategy = DEFAULT_STRATEGY,
    heartbeat_interval: Annotated[
        float,
        typer.Option(
            envvar="LLAVA_GRPC_HEARTBEAT_INTERVAL",
            metavar="SECONDS",
            help="How often workers send a sign of life.",
            rich_help_panel=FLEET,
        ),
    ] = 30.0,
    heartbeat_expiry: Annotated[
        float,
        typer.Option(
            envvar="LLAVA_GRPC_HEARTBEAT_EXPIRY",
            metavar="SECONDS",
            help="A worker silent for this long is dropped.",
            rich_help_panel=FLEET,
        ),
    ] = 90.0,
    join_token: options.JoinToken = "",
    max_attempts: Annotated[
        int,
        typer.Option(
            envvar="LLAVA_GRPC_MAX_ATTEMPTS",
            metavar="N",
            help="Workers that a request may lose in a row, without a new token in between.",
            rich_help_panel=FLEET,
        ),
    ] = 3,
    resume_memory_mb: Annotated[
        int,
        typer.Option(
            envvar="LLAVA_GRPC_RESUME_MEMORY_MB",
            metavar="MIB",
            min=0,
            help="Memory for requests that are kept while they are answered, so that another worker can go on.",
            rich_help_panel=FLEET,
        ),
    ] = 1024,
    queue_length: Annotated[
        int,
        typer.Option(
            envvar="LLAVA_GRPC_QUEUE_LENGTH",
            metavar="N",
            min=0,
            help="Requests that may wait for a model while all are busy. 0: none.",
            rich_help_panel=FLEET,
        ),
    ] = 256,
    queue_wait: Annotated[
        float,
        typer.Option(
            envvar="LLAVA_GRPC_QUEUE_WAIT",
            metavar="SECONDS",
            help="How long a request may wait.",
            rich_help_panel=FLEET,
        ),
    ] = 60.0,
    parents: Annotated[
        list[str],
        typer.Option(
            "--parent",
            envvar="LLAVA_GRPC_PARENT",
            metavar="HOST:PORT",
            help="A controller that this one serves as a worker, with all that its own workers have. Repeatable.",
            rich_help_panel=STACK,
        ),
    ] = [],  # noqa: B006 - typer copies it
    parent_join_token: Annotated[
        str,
        typer.Option(
            envvar="LLAVA_GRPC_PARENT_JOIN_TOKEN",
            metavar="SECRET",
            help="What to show to the parents.",
            rich_help_panel=STACK,
        ),
    ] = "",
    advertise: Annotated[
        str,
        typer.Option(
            envvar="LLAVA_GRPC_ADVERTISE",
            metavar="HOST:PORT",
            help="Where the parents reach this controller. Default: where it listens.",
            rich_help_panel=STACK,
        ),
    ] = "",
    grace: options.Grace = 5.0,
    max_message_mb: options.MaxMessageMb = 64,
    log_level: options.LogLevel = "info",
) -> int:
    """Run a controller: the address that clients ask and workers join."""
    settings = ControllerSettings(
        server=ServerSettings(host=host, port=port, max_message_bytes=mebibytes(max_message_mb), grace=grace),
        strategy=strategy,
        heartbeat_interval=heartbeat_interval,
        heartbeat_expiry=heartbeat_expiry,
        join_token=join_token,
        max_attempts=max_attempts,
        resume_memory_bytes=mebibytes(resume_memory_mb),
        queue_length=queue_length,
        queue_wait=queue_wait,
        parents=tuple(dict.fromkeys(address_of(parent) for parent in parents)),
        parent_join_token=parent_join_token,
        address=address_of(advertise),
    )
    logs.configure("controller", log_level)
    import asyncio

    from llava_grpc.cli.serve import run_controller

    return asyncio.run(run_controller(settings))


def worker(
    host: options.Host = "127.0.0.1",
    port: options.Port = DEFAULT_WORKER_PORT,
    worker_address: Annotated[
        str,
        typer.Option(
            "--worker-address",
            "--worker",
            envvar="LLAVA_GRPC_WORKER_ADDRESS",
            metavar="HOST:PORT",
            help="Where controllers and clients reach this worker. Default: where it listens.",
            rich_help_panel=NETWORK,
        ),
    ] = "",
    controllers: Annotated[
        list[str],
        typer.Option(
            "--controller",
            "--controller-address",
            envvar="LLAVA_GRPC_CONTROLLER",
            metavar="HOST:PORT",
            help="A controller to join. Repeatable.",
            show_default=f"127.0.0.1:{DEFAULT_CONTROLLER_PORT}",
            rich_help_panel=FLEET,
        ),
    ] = [f"127.0.0.1:{DEFAULT_CONTROLLER_PORT}"],  # noqa: B006 - typer copies it
    engine: options.EngineName = "transformers",
    model_path: options.ModelPath = "",
    model_name: options.ModelName = "",
    alias: Annotated[
        list[str],
        typer.Option(
            envvar="LLAVA_GRPC_ALIAS",
            metavar="NAME",
            help="A further name for the model. Repeatable.",
            rich_help_panel=MODEL,
        ),
    ] = [],  # noqa: B006
    device: Annotated[
        str,
        typer.Option(
            envvar="LLAVA_GRPC_DEVICE",
            help="auto (a GPU where there is one), cpu, cuda, cuda:1 ...",
            rich_help_panel=ENGINE,
        ),
    ] = "auto",
    dtype: options.DType = "auto",
    threads: options.Threads = 0,
    slots: options.Slots = 0,
    kv_tokens: Annotated[
        int,
        typer.Option(
            envvar="LLAVA_GRPC_KV_TOKENS",
            min=0,
            metavar="N",
            help="Tokens that the KV cache holds, over all requests. 0: enough for the slots.",
            rich_help_panel=ENGINE,
        ),
    ] = 0,
    batch_tokens: Annotated[
        int,
        typer.Option(
            envvar="LLAVA_GRPC_BATCH_TOKENS",
            min=0,
            metavar="N",
            help="Tokens computed in one step at most. 0: the engine's choice.",
            rich_help_panel=ENGINE,
        ),
    ] = 0,
    page_size: Annotated[
        int,
        typer.Option(
            envvar="LLAVA_GRPC_PAGE_SIZE",
            min=1,
            metavar="N",
            help="Tokens in a page of the KV cache; prefixes are shared in whole pages.",
            rich_help_panel=ENGINE,
        ),
    ] = 16,
    context_tokens: Annotated[
        int,
        typer.Option(
            envvar="LLAVA_GRPC_CONTEXT_TOKENS",
            min=0,
            metavar="N",
            help="Longest prompt and answer together. 0: the model's own limit.",
            rich_help_panel=MODEL,
        ),
    ] = 0,
    max_new_tokens_limit: Annotated[
        int,
        typer.Option(
            envvar="LLAVA_GRPC_MAX_NEW_TOKENS_LIMIT",
            min=1,
            metavar="N",
            help="The longest answer that may be asked for.",
            rich_help_panel=MODEL,
        ),
    ] = 1024,
    speed: Annotated[
        float | None,
        typer.Option(
            envvar="LLAVA_GRPC_SPEED",
            metavar="NUMBER",
            help="Relative speed, by which work is shared out. Default: as measured.",
            rich_help_panel=FLEET,
        ),
    ] = None,
    engine_option: options.EngineOptions = [],  # noqa: B006
    join_token: options.JoinToken = "",
    no_register: Annotated[
        bool,
        typer.Option(
            "--no-register",
            envvar="LLAVA_GRPC_NO_REGISTER",
            help="Join no controller; clients ask this worker directly.",
            rich_help_panel=FLEET,
        ),
    ] = False,
    no_check_heartbeat: Annotated[
        bool,
        typer.Option(
            "--no-check-heartbeat",
            envvar="LLAVA_GRPC_NO_CHECK_HEARTBEAT",
            help="Stay on the register though heartbeats stop.",
            rich_help_panel=FLEET,
        ),
    ] = False,
    max_images: Annotated[
        int,
        typer.Option(
            envvar="LLAVA_GRPC_MAX_IMAGES",
            metavar="N",
            min=0,
            help="Pictures in one request at most.",
            rich_help_panel=MODEL,
        ),
    ] = 16,
    max_image_pixels: Annotated[
        int,
        typer.Option(
            envvar="LLAVA_GRPC_MAX_IMAGE_PIXELS",
            metavar="N",
            min=1,
            help="Larger pictures are refused before they are decoded.",
            rich_help_panel=MODEL,
        ),
    ] = 50_000_000,
    image_cache_mb: Annotated[
        int,
        typer.Option(
            envvar="LLAVA_GRPC_IMAGE_CACHE_MB",
            metavar="MIB",
            min=1,
            help="Memory for features of pictures seen before.",
            rich_help_panel=ENGINE,
        ),
    ] = 256,
    grace: options.Grace = 5.0,
    max_message_mb: options.MaxMessageMb = 64,
    log_level: options.LogLevel = "info",
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> int:
    """Run a worker: loads a model, answers with it, and joins its controllers (and waits for those not there yet)."""
    import asyncio

    from llava_grpc.cli.serve import hold_lifeline, run_worker, told

    if supervised:
        hold_lifeline()

    def read() -> WorkerSettings:
        return WorkerSettings(
            server=ServerSettings(host=host, port=port, max_message_bytes=mebibytes(max_message_mb), grace=grace),
            engine_name=engine,
            engine=EngineSettings(
                model_path=model_path,
                model_name=model_name,
                aliases=tuple(alias),
                device=device,
                dtype=dtype,
                threads=threads,
                slots=slots,
                max_new_tokens_limit=max_new_tokens_limit,
                context_tokens=context_tokens,
                kv_tokens=kv_tokens,
                batch_tokens=batch_tokens,
                page_size=page_size,
                max_images=max_images,
                max_image_pixels=max_image_pixels,
                image_cache_bytes=mebibytes(image_cache_mb),
                speed=speed,
                options=engine_options(engine_option),
            ),
            controllers=() if no_register else tuple(dict.fromkeys(address_of(address) for address in controllers)),
            address=address_of(worker_address),
            join_token=join_token,
            check_heartbeat=not no_check_heartbeat,
        )

    logs.configure("worker", log_level)
    with told(supervised):
        settings = read()
    return asyncio.run(run_worker(settings, supervised))


def up(
    workers: Annotated[
        int, typer.Option("--workers", "-n", min=1, max=64, envvar="LLAVA_GRPC_WORKERS", metavar="N", help="How many.")
    ] = 2,
    port: options.Port = DEFAULT_CONTROLLER_PORT,
    engine: options.EngineName = "transformers",
    model_path: options.ModelPath = "",
    model_name: options.ModelName = "",
    device: Annotated[
        list[str],
        typer.Option(
            envvar="LLAVA_GRPC_DEVICE",
            metavar="DEVICE",
            help="auto, cpu, cuda:0 ... Repeatable: workers take them in turn.",
            show_default="auto",
            rich_help_panel=ENGINE,
        ),
    ] = ["auto"],  # noqa: B006
    dtype: options.DType = "auto",
    threads: options.Threads = 0,
    slots: options.Slots = 0,
    engine_option: options.EngineOptions = [],  # noqa: B006
    strategy: options.Strategy = DEFAULT_STRATEGY,
    max_message_mb: options.MaxMessageMb = 64,
    check: Annotated[
        bool,
        typer.Option("--check", "--once", help="Prove that it works, then stop: for tests.", rich_help_panel=OUTPUT),
    ] = False,
    log_level: options.LogLevel = "warning",
) -> int:
    """Start everything on this machine: a controller and workers with the bundled model; prove it, then serve.

    Ctrl-C stops all of it. Everything listens on loopback only. Further options of `llava-grpc worker` can be set by
    their environment variables.
    """
    settings = ControllerSettings(
        server=ServerSettings(port=port, max_message_bytes=mebibytes(max_message_mb)), strategy=strategy
    )
    engine_options(engine_option)  # a slip is found before anything is started
    logs.configure("controller", log_level)
    import asyncio

    from llava_grpc.cli.up import Plan, run_up, share_of_cores

    bundled = engine == "transformers" and not model_path
    share = threads or (0 if bundled else share_of_cores(workers))  # 0: the engine knows what suits a small model
    common = [
        *("--engine", engine, "--model-path", model_path, "--model-name", model_name, "--dtype", dtype),
        *("--threads", str(share), "--slots", str(slots), "--max-message-mb", str(max_message_mb)),
        *("--log-level", log_level, *(f"--engine-option={pair}" for pair in engine_option)),
    ]
    commands = tuple((*common, "--device", device[index % len(device)]) for index in range(workers))
    return asyncio.run(run_up(Plan(settings, commands, bundled=bundled, check=check)))
