"""The OpenAI-compatible API: /v1/models, /v1/chat/completions, /v1/completions; and /health, /metrics.

Law: whatever goes wrong, the client gets an error in OpenAI's shape, with the reason that the fabric has for it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from llava_grpc import __version__
from llava_grpc.client import AsyncClient
from llava_grpc.client.fleet import ServedModel
from llava_grpc.config import GatewaySettings
from llava_grpc.errors import LlavaGrpcError, ModelNotFoundError
from llava_grpc.gateway.front import Front
from llava_grpc.gateway.metrics import Metrics
from llava_grpc.gateway.pictures import Pictures
from llava_grpc.gateway.problems import ApiError
from llava_grpc.gateway.prompting import chat_requests, completion_requests
from llava_grpc.gateway.schema import ChatRequest, CompletionRequest
from llava_grpc.gateway.serving import Asked, Serving
from llava_grpc.gateway.shapes import Chat, Completion, Reply
from llava_grpc.logs import REQUEST_ID

HEALTH_TIMEOUT = 2.0
"""Seconds that the fleet may take to answer for the gateway's health."""

_log = logging.getLogger(__name__)


def create_app(settings: GatewaySettings, client: AsyncClient, pictures: Pictures | None = None) -> FastAPI:
    """The API as an ASGI application. Closes `client` and `pictures` at its end."""
    fetched = pictures or Pictures(settings)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        await fetched.close()
        await client.close()

    app = FastAPI(
        title="llava-grpc",
        version=__version__,
        summary="An OpenAI-compatible API over a fleet of LLaVA workers.",
        lifespan=life,
    )
    metrics = Metrics()
    _handle_errors(app)
    _add_routes(app, Serving(client, metrics), client, fetched)
    _add_health(app, client, metrics)
    app.add_middleware(Front, settings=settings, metrics=metrics)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id"],
        )
    return app


def _add_routes(app: FastAPI, serving: Serving, client: AsyncClient, pictures: Pictures) -> None:
    @app.get("/v1/models", tags=["OpenAI"])
    async def list_models() -> dict[str, Any]:
        """What can be asked for."""
        return {"object": "list", "data": [_model(model) for model in await client.models()]}

    @app.get("/v1/models/{name:path}", tags=["OpenAI"])
    async def get_model(name: str) -> dict[str, Any]:
        """One of them, by its name or an alias."""
        for model in await client.models():
            if model.card.answers_to(name):
                return _model(model)
        raise ModelNotFoundError(f"no model is named {name!r}")

    @app.post("/v1/chat/completions", tags=["OpenAI"], response_model=None)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """An answer to a conversation, with pictures."""
        requests = await chat_requests(body, pictures, REQUEST_ID.get())
        tells_usage = bool(body.stream and body.stream_options and body.stream_options.include_usage)
        shape = Chat(bool(body.logprobs))
        reply = Reply(shape, f"chatcmpl-{REQUEST_ID.get()}", len(requests), tells_usage=tells_usage)
        asked = Asked("chat", requests, reply)
        return await (serving.streamed if body.stream else serving.whole)(request, asked)

    @app.post("/v1/completions", tags=["OpenAI"], response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Text that goes on where a text ends; no template is applied."""
        requests = completion_requests(body, REQUEST_ID.get())
        tells_usage = bool(body.stream and body.stream_options and body.stream_options.include_usage)
        shape = Completion(body.logprobs is not None)
        reply = Reply(shape, f"cmpl-{REQUEST_ID.get()}", len(requests), tells_usage=tells_usage)
        asked = Asked("completions", requests, reply)
        return await (serving.streamed if body.stream else serving.whole)(request, asked)


def _add_health(app: FastAPI, client: AsyncClient, metrics: Metrics) -> None:
    @app.get("/health", tags=["operations"])
    async def health() -> JSONResponse:
        """Whether a model can be asked for."""
        try:
            models = await client.models(timeout=HEALTH_TIMEOUT)
        except LlavaGrpcError as error:
            return JSONResponse({"status": "unavailable", "reason": error.reason, "cause": error.cause}, 503)
        if not models:
            return JSONResponse({"status": "unavailable", "reason": "NO_LIVE_WORKER", "cause": "no model served"}, 503)
        return JSONResponse({"status": "ok", "models": [model.name for model in models]})

    @app.get("/metrics", tags=["operations"], response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(LlavaGrpcError)
    async def typed(request: Request, error: LlavaGrpcError) -> Response:
        return _told(ApiError.of(error))

    @app.exception_handler(ApiError)
    async def problem(request: Request, error: ApiError) -> Response:
        return _told(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _told(_invalid(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        where = f"{request.method} {request.url.path}"
        return _told(ApiError(error.status_code, f"{where}: {error.detail}", code=None))

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> Response:
        _log.error("defect in %s %s", request.method, request.url.path, exc_info=error)
        told = ApiError(
            500, f"a defect in the gateway: {type(error).__name__}", kind="server_error", code="ENGINE_FAILED"
        )
        return _told(told)


def _told(problem: ApiError) -> Response:
    return JSONResponse(problem.body(), problem.status, headers=problem.headers)


def _invalid(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a body, and at which field."""
    first = error.errors()[0]
    path = [step for step in first["loc"][1:] if step not in ("str", "text", "image_url") or step == first["loc"][-1]]
    name = str(first["loc"][-1])
    match first["type"]:
        case "json_invalid":
            return ApiError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', '')}", code="invalid_json")
        case "not_served":
            named = first["ctx"]["name"]
            return ApiError.at(
                [named], "is not served here (docs/openai.md says what is)", code="unsupported_parameter"
            )
        case "extra_forbidden" if len(first["loc"]) == 2:
            return ApiError.at([name], f"there is no such field: {name}", code="unknown_parameter")
        case _:
            return ApiError.at(path, str(first["msg"]), code="invalid_value")


def _model(model: ServedModel) -> dict[str, Any]:
    card = model.card
    return {
        "id": card.name,
        "object": "model",
        "created": 0,
        "owned_by": "llava-grpc",
        "aliases": card.aliases,
        "sees_images": card.sees_images,
        "max_model_len": card.context_tokens,
        "workers": model.workers,
    }
