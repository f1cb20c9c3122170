"""What stands before the routes: who may ask and how much, the request's name, and what is counted of it.

Plain ASGI. Law: a body over the limit is refused as it comes in, never held.
"""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from llava_grpc.config import GatewaySettings
from llava_grpc.core.prompt import check_request_id
from llava_grpc.errors import RequestIdInvalidError
from llava_grpc.gateway.metrics import Metrics
from llava_grpc.gateway.problems import ApiError
from llava_grpc.gateway.prompting import new_request_id
from llava_grpc.logs import REQUEST_ID

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LONGEST_NAME = 96
"""Characters of a name that a client gives its request: several choices are told apart by what is added."""

_log = logging.getLogger(__name__)


class Front:
    """See the module."""

    def __init__(self, app: App, settings: GatewaySettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {bytes(name).lower(): bytes(value) for name, value in scope["headers"]}
        name = _name(headers)
        REQUEST_ID.set(name)
        route, began, status = scope["path"], time.monotonic(), 0
        counted = route.startswith("/v1/")

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name.encode())]
            await send(message)

        in_flight = self._metrics.in_flight.labels(_route(route))
        in_flight.inc(counted)
        try:
            self._check_key(scope, headers)
            body = await self._body(headers, receive)
            await self._app(scope, _replayed(body, receive), named)
        except ApiError as problem:
            await answer(problem, named)
        finally:
            in_flight.dec(counted)
            if counted:
                self._metrics.requests.labels(_route(route), str(status)).inc()
                self._metrics.seconds.labels(_route(route)).observe(time.monotonic() - began)
                _log.info("%s %s: %d after %.3f s", scope["method"], route, status, time.monotonic() - began)

    def _check_key(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        keys = self._settings.api_keys
        if not keys or not scope["path"].startswith("/v1/") or scope["method"] == "OPTIONS":
            return
        shown = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if not any(hmac.compare_digest(shown, key.encode()) for key in keys):
            raise ApiError(
                401,
                "the API key is wrong" if shown else "an API key is needed: Authorization: Bearer KEY",
                code="invalid_api_key",
            )

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        most = self._settings.body_bytes
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > most:
            raise _too_large(most)
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > most:
                raise _too_large(most)
        return bytes(body)


async def answer(problem: ApiError, send: Send) -> None:
    """Tell a client of it."""
    body = json.dumps(problem.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body, then whatever comes after it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _name(headers: dict[bytes, bytes]) -> str:
    """The client's, where it is fit for logs."""
    name = headers.get(b"x-request-id", b"").decode("latin-1")[:LONGEST_NAME]
    try:
        check_request_id(name)
    except RequestIdInvalidError:
        return new_request_id()
    return name or new_request_id()


def _route(path: str) -> str:
    """A label of few values, whatever is asked for."""
    known = {"/v1/chat/completions": "chat", "/v1/completions": "completions", "/v1/models": "models"}
    return known.get(path, "other")


def _too_large(most: int) -> ApiError:
    return ApiError(
        413,
        f"the body is larger than {most:,} bytes. Send smaller pictures, or raise --max-message-mb on every node",
        code="MESSAGE_TOO_LARGE",
        reason="MESSAGE_TOO_LARGE",
    )
