"""Logs: one line an event, with the request it belongs to.

    2026-11-23 12:00:01.123 INFO  controller  [4f1c0a9be27d11aa] generate model=llava-demo worker=127.0.0.1:21002

The request id is a context variable: whatever is logged while a request is served carries it, with no hands involved.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar

from llava_grpc.config import SettingsError

REQUEST_ID: ContextVar[str] = ContextVar("llava_grpc_request_id", default="")
"""The request that the running task serves."""

LEVELS = ("debug", "info", "warning", "error")

_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(node)s %(request)s%(message)s"


class _Context(logging.Filter):
    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def filter(self, record: logging.LogRecord) -> bool:
        request_id = REQUEST_ID.get()
        record.node = self._node
        record.request = f"[{request_id}] " if request_id else ""
        return True


def configure(node: str, level: str = "info") -> None:
    """Send this process's logs to standard error as lines of the form above, `node` naming the process.

    Raises:
        SettingsError: there is no such level.
    """
    if level.lower() not in LEVELS:
        raise SettingsError(f"there is no log level {level!r}; use one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler()
    handler.addFilter(_Context(node))
    handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%Y-%m-%d %H:%M:%S"))
    package = logging.getLogger("llava_grpc")
    package.handlers[:] = [handler]
    package.setLevel(level.upper())
    package.propagate = False
