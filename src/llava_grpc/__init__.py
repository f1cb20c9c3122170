"""A gRPC fabric that serves LLaVA-style vision-language models from many GPU workers behind one address.

`Client` and `AsyncClient` are loaded when first asked for, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from llava_grpc.client.aio import AsyncClient
    from llava_grpc.client.sync import Client

__all__ = ["AsyncClient", "Client", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Client":
        from llava_grpc.client.sync import Client

        return Client
    if name == "AsyncClient":
        from llava_grpc.client.aio import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
