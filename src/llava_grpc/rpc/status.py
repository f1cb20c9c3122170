"""Typed errors to gRPC statuses and back, by one table.

An error travels as status code, message (cause and remedy) and google.rpc.ErrorInfo in `grpc-status-details-bin`, so
that the client raises the very class that the server raised. A status without our ErrorInfo comes from gRPC itself or
from a stranger; what it means depends on who reads it, so `from_rpc_error` says whether the peer wrote it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from llava_grpc import errors
from llava_grpc.errors import LlavaGrpcError

DOMAIN = "llava_grpc"
DETAILS_KEY = "grpc-status-details-bin"
_MAX_MESSAGE = 1_000  # trailers share a budget of 8 KiB; a cause never needs more

_log = logging.getLogger(__name__)

CODES: dict[str, grpc.StatusCode] = {
    "IMAGE_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "IMAGE_TOO_LARGE": grpc.StatusCode.INVALID_ARGUMENT,
    "IMAGE_URI_DISABLED": grpc.StatusCode.INVALID_ARGUMENT,
    "IMAGE_COUNT_MISMATCH": grpc.StatusCode.INVALID_ARGUMENT,
    "IMAGES_NOT_SUPPORTED": grpc.StatusCode.INVALID_ARGUMENT,
    "PROMPT_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "PROMPT_TOO_LONG": grpc.StatusCode.INVALID_ARGUMENT,
    "SAMPLING_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "REQUEST_ID_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "MODEL_REQUIRED": grpc.StatusCode.INVALID_ARGUMENT,
    "REGISTRATION_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "MESSAGE_TOO_LARGE": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "MODEL_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "WORKER_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "IMAGE_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "ALL_SLOTS_TAKEN": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "QUEUE_FULL": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "NO_LIVE_WORKER": grpc.StatusCode.UNAVAILABLE,
    "ALL_SPEEDS_ZERO": grpc.StatusCode.UNAVAILABLE,
    "WORKER_LOST": grpc.StatusCode.UNAVAILABLE,
    "RESUME_FAILED": grpc.StatusCode.UNAVAILABLE,
    "SERVER_UNREACHABLE": grpc.StatusCode.UNAVAILABLE,
    "STARTING": grpc.StatusCode.UNAVAILABLE,
    "SHUTTING_DOWN": grpc.StatusCode.UNAVAILABLE,
    "JOIN_REFUSED": grpc.StatusCode.UNAUTHENTICATED,
    "WORKER_UNREACHABLE": grpc.StatusCode.FAILED_PRECONDITION,
    "ADDRESS_TAKEN": grpc.StatusCode.FAILED_PRECONDITION,
    "CONTROLLER_LOOP": grpc.StatusCode.FAILED_PRECONDITION,
    "PROTOCOL_VERSION": grpc.StatusCode.FAILED_PRECONDITION,
    "DEADLINE_EXCEEDED": grpc.StatusCode.DEADLINE_EXCEEDED,
    "CANCELLED": grpc.StatusCode.CANCELLED,
    "ENGINE_FAILED": grpc.StatusCode.INTERNAL,
}

_CLASSES: dict[str, type[LlavaGrpcError]] = {leaf.reason: leaf for leaf in LlavaGrpcError.leaves()}


def code_of(error: LlavaGrpcError) -> grpc.StatusCode:
    """The gRPC code that the error travels under."""
    return CODES.get(error.reason, grpc.StatusCode.UNKNOWN)


def to_trailers(error: LlavaGrpcError) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries the error's details."""
    status = Status(code=code_of(error).value[0], message=str(error)[:_MAX_MESSAGE])
    info = ErrorInfo(reason=error.reason, domain=DOMAIN, metadata={**error.metadata, "remedy": error.remedy})
    status.details.append(_packed(info))
    if error.retry_after is not None:
        retry = RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after * 1e9))
        status.details.append(_packed(retry))
    return ((DETAILS_KEY, status.SerializeToString()),)


def _packed(message: ErrorInfo | RetryInfo) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: LlavaGrpcError) -> None:
    """End the call with the error's status. Never returns: gRPC raises."""
    await context.abort(code_of(error), str(error)[:_MAX_MESSAGE], trailing_metadata=to_trailers(error))


class _RpcError(Protocol):
    def code(self) -> grpc.StatusCode | None: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Any: ...


def from_rpc_error(rpc_error: _RpcError) -> LlavaGrpcError | None:
    """The typed error that the peer sent, or None where the status was not written by a llava_grpc server."""
    raw = next((value for key, value in rpc_error.trailing_metadata() or () if key == DETAILS_KEY), None)
    if not isinstance(raw, bytes):
        return None
    status = Status.FromString(raw)
    info, retry_after = ErrorInfo(), None
    for detail in status.details:
        if detail.Is(ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(RetryInfo.DESCRIPTOR):
            retry = RetryInfo()
            detail.Unpack(retry)
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    if info.domain != DOMAIN:
        return None
    metadata = dict(info.metadata)
    remedy = metadata.pop("remedy", "")
    cause = status.message.removesuffix(f". {remedy}") if remedy else status.message
    error_class = _CLASSES.get(info.reason)
    if error_class is None:  # a newer server's reason: keep its words
        return LlavaGrpcError(f"{info.reason}: {cause}", remedy=remedy, retry_after=retry_after, metadata=metadata)
    return error_class(cause, remedy=remedy, retry_after=retry_after, metadata=metadata)


def explain_rpc_error(rpc_error: _RpcError, address: str) -> LlavaGrpcError:
    """The typed error for a failed call to `address`, whoever wrote its status: for clients."""
    typed = from_rpc_error(rpc_error)
    if typed is not None:
        return typed
    details = rpc_error.details() or ""
    match rpc_error.code():
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineExceededError("the deadline passed before the answer was complete")
        case _ if "RST_STREAM" in details:  # written by what carries the stream, a load balancer perhaps
            return errors.ServerUnreachableError(f"the stream from {address} was cut ({details})")
        case grpc.StatusCode.CANCELLED:
            return errors.RequestCancelledError("the call was cancelled")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in details:
            return errors.MessageTooLargeError(f"a message is over the limit ({details})")
        case grpc.StatusCode.UNAVAILABLE:
            return errors.ServerUnreachableError(f"no answer from {address} ({details})")
        case grpc.StatusCode.UNIMPLEMENTED:
            return errors.ProtocolVersionError(
                f"{address} does not know the call", remedy="Is it a llava-grpc controller or worker of this release?"
            )
        case code:
            name = code.name if code is not None else "no status"
            return errors.EngineFailedError(f"{address} answered {name}: {details}")


_Handler = TypeVar("_Handler", bound=Callable[..., Awaitable[Any]])


def typed_errors(handler: _Handler) -> _Handler:
    """Make a servicer's coroutine `(self, request, context)` end its call properly whatever it raises.

    Typed errors become their status; what is not typed is a defect: logged with its trace, answered INTERNAL.
    """

    @functools.wraps(handler)
    async def wrapped(self: Any, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await handler(self, request, context)
        except LlavaGrpcError as error:
            await abort(context, error)
        except grpc.aio.AbortError:
            raise
        except grpc.aio.BaseError as error:
            # gRPC itself failed a write or read: the peer is gone, there is nobody to tell.
            _log.debug("call ended by the transport: %r", error)
            raise
        except Exception as error:
            _log.exception("defect in %s", handler.__qualname__)
            await abort(context, errors.EngineFailedError(f"a defect in the server: {type(error).__name__}"))

    return wrapped  # type: ignore[return-value]
