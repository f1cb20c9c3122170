"""Errors as OpenAI's clients know them: a status, and a body that says what is wrong and with which field.

Law: the reason is the same as on the wire (docs/errors.md): in `reason`, and in `code` unless OpenAI has a word of its
own for it. Whoever is told to try again is told when (Retry-After).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llava_grpc.core.sampling import Sampling
from llava_grpc.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    LlavaGrpcError,
    MessageTooLargeError,
    NotFoundError,
    OverloadedError,
    RequestCancelledError,
    SamplingInvalidError,
    UnavailableError,
)

CLIENT_CLOSED_REQUEST = 499
"""nginx's: the client went away. Nobody reads it but the log."""

_CODES = {"MODEL_NOT_FOUND": "model_not_found", "PROMPT_TOO_LONG": "context_length_exceeded"}
_PARAMETERS = {
    "MODEL_NOT_FOUND": "model",
    "MODEL_REQUIRED": "model",
    "PROMPT_TOO_LONG": "messages",
    "PROMPT_INVALID": "messages",
    "IMAGE_INVALID": "messages",
    "IMAGE_TOO_LARGE": "messages",
    "IMAGE_URI_DISABLED": "messages",
    "IMAGE_COUNT_MISMATCH": "messages",
    "IMAGES_NOT_SUPPORTED": "messages",
}


class ApiError(Exception):
    """Something to tell a client of the gateway, in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        reason: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self._message, self._kind, self._code, self._param, self._reason = message, kind, code, param, reason
        self._retry_after = retry_after

    @classmethod
    def of(cls, error: LlavaGrpcError) -> ApiError:
        """A typed error as one."""
        status, kind = _status_and_kind(error)
        return cls(
            status,
            str(error),
            kind=kind,
            code=_CODES.get(error.reason, error.reason),
            param=_PARAMETERS.get(error.reason) or _option(error),
            reason=error.reason,
            retry_after=error.retry_after,
        )

    @classmethod
    def at(cls, path: Sequence[str | int], message: str, code: str | None = None) -> ApiError:
        """A field that is wrong; `path` leads to it."""
        named = _dotted(path)
        return cls(400, f"{named}: {message}" if named else message, param=named or None, code=code)

    @property
    def headers(self) -> dict[str, str]:
        """With when to try again, in whole seconds."""
        return {} if self._retry_after is None else {"Retry-After": str(max(1, math.ceil(self._retry_after)))}

    def body(self) -> dict[str, Any]:
        """As OpenAI has it, and our reason."""
        error = {"message": self._message, "type": self._kind, "param": self._param, "code": self._code}
        if self._reason is not None:
            error["reason"] = self._reason
        return {"error": error}


def _status_and_kind(error: LlavaGrpcError) -> tuple[int, str]:
    match error:
        case MessageTooLargeError():
            return 413, "invalid_request_error"
        case InvalidRequestError():
            return 400, "invalid_request_error"
        case NotFoundError():
            return 404, "invalid_request_error"
        case OverloadedError():
            return 429, "rate_limit_error"
        case UnavailableError():
            return 503, "server_error"
        case DeadlineExceededError():
            return 504, "server_error"
        case RequestCancelledError():
            return CLIENT_CLOSED_REQUEST, "server_error"
        case _:
            return 500, "server_error"


def _option(error: LlavaGrpcError) -> str | None:
    """The sampling option at fault: its errors begin with its name."""
    name = error.cause.split(" ")[0]
    return name if isinstance(error, SamplingInvalidError) and name in Sampling.__slots__ else None


def _dotted(path: Sequence[str | int]) -> str:
    named = ""
    for step in path:
        named += f"[{step}]" if isinstance(step, int) else f".{step}" if named else step
    return named
