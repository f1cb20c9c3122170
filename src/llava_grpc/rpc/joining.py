"""The join token: how workers and operators show it, and how nodes ask for it."""

from __future__ import annotations

import hmac
from typing import Any

import grpc.aio

from llava_grpc.errors import JoinRefusedError

Metadata = tuple[tuple[str, str], ...]


def join_metadata(join_token: str) -> Metadata:
    """The metadata that shows a join token."""
    return (("authorization", f"Bearer {join_token}"),) if join_token else ()


def check_join_token(context: grpc.aio.ServicerContext[Any, Any], expected: str) -> None:
    """Pass a call that shows the token, and any call where none is expected.

    Raises:
        JoinRefusedError: it shows none, or another one.
    """
    if not expected:
        return
    metadata = dict(context.invocation_metadata() or ())
    shown = str(metadata.get("authorization", "")).removeprefix("Bearer ")
    if not hmac.compare_digest(shown.encode(), expected.encode()):
        raise JoinRefusedError("the join token is wrong" if shown else "a join token is required")
