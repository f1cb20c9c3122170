"""`llava-grpc gateway`: the OpenAI-compatible API in front of a fleet."""

from __future__ import annotations

from typing import Annotated

import typer

from llava_grpc import logs
from llava_grpc.cli import options
from llava_grpc.cli.options import FLEET, NETWORK, addresses_of, mebibytes
from llava_grpc.config import DEFAULT_CONTROLLER_PORT, DEFAULT_GATEWAY_PORT, GatewaySettings

PICTURES = "Pictures by URL"


def gateway(
    host: options.Host = "127.0.0.1",
    port: options.Port = DEFAULT_GATEWAY_PORT,
    controller: options.ControllerAddress = f"127.0.0.1:{DEFAULT_CONTROLLER_PORT}",
    api_key: Annotated[
        list[str],
        typer.Option(
            envvar="LLAVA_GRPC_API_KEY",
            metavar="SECRET",
            help="A key that opens the API. Repeatable. None: anybody may ask. Better in the environment than here.",
            rich_help_panel=NETWORK,
        ),
    ] = [],  # noqa: B006 - typer copies it
    cors_origin: Annotated[
        list[str],
        typer.Option(
            envvar="LLAVA_GRPC_CORS_ORIGIN",
            metavar="ORIGIN",
            help="A site whose pages may ask from a browser; * for all. Repeatable.",
            rich_help_panel=NETWORK,
        ),
    ] = [],  # noqa: B006
    allow_image_host: Annotated[
        list[str],
        typer.Option(
            envvar="LLAVA_GRPC_ALLOW_IMAGE_HOST",
            metavar="HOST",
            help="A host from which pictures may be fetched, *.HOST with all below it. Repeatable. None: no fetching.",
            rich_help_panel=PICTURES,
        ),
    ] = [],  # noqa: B006
    image_timeout: Annotated[
        float,
        typer.Option(
            envvar="LLAVA_GRPC_IMAGE_TIMEOUT",
            metavar="SECONDS",
            help="For fetching one.",
            rich_help_panel=PICTURES,
        ),
    ] = 10.0,
    max_image_mb: Annotated[
        int,
        typer.Option(
            envvar="LLAVA_GRPC_MAX_IMAGE_MB",
            metavar="MIB",
            min=1,
            help="The largest one that is fetched.",
            rich_help_panel=PICTURES,
        ),
    ] = 20,
    grace: Annotated[
        float,
        typer.Option(
            envvar="LLAVA_GRPC_GRACE",
            metavar="SECONDS",
            help="At a clean stop, answers may go on for so long.",
            rich_help_panel=FLEET,
        ),
    ] = 5.0,
    max_message_mb: options.MaxMessageMb = 64,
    log_level: options.LogLevel = "info",
) -> int:
    """Run a gateway: OpenAI's API (chat completions with pictures, completions, models) in front of a fleet.

    Any OpenAI client can talk to it: base_url http://HOST:PORT/v1. /docs shows the API, /metrics is for Prometheus.
    """
    settings = GatewaySettings(
        host=host,
        port=port,
        controllers=addresses_of(controller),
        api_keys=tuple(api_key),
        cors_origins=tuple(cors_origin),
        image_hosts=tuple(allow_image_host),
        image_bytes=mebibytes(max_image_mb),
        image_timeout=image_timeout,
        body_bytes=mebibytes(max_message_mb),
    )
    logs.configure("gateway", log_level)
    import asyncio

    from llava_grpc.cli.serve import run_gateway

    return asyncio.run(run_gateway(settings, grace))
