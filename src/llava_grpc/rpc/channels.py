"""Channels to other nodes, with the options that this project measured its way to (docs/design.md).

Options, and why: message limits both ways; reconnecting within half a second of a peer's return (gRPC's default waits
up to two minutes); keepalive with a ping timeout, without which a stopped process is never noticed; no HTTP proxy,
which gRPC would otherwise take from the environment even for loopback.
"""

from __future__ import annotations

import grpc.aio

from llava_grpc.config import DEFAULT_MAX_MESSAGE_BYTES


def channel_options(max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> list[tuple[str, int]]:
    """Options for a channel to a controller or worker."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Also the time that one attempt may take: a busy peer needs more than the pause between two attempts.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.ping_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_channelz", 1),
        # Channels of one process to one address share a connection by default; a node's own must fail alone.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def open_channel(address: str, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> grpc.aio.Channel:
    """A channel to `host:port`; connects when first used. Close it."""
    return grpc.aio.insecure_channel(address, options=channel_options(max_message_bytes))
