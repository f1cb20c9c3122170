"""The worker's side of the contract: InferenceService and WorkerService."""

from __future__ import annotations

import logging
from dataclasses import replace
from random import Random
from typing import Any

import grpc.aio

from llava_grpc import __version__
from llava_grpc.config import WorkerSettings
from llava_grpc.core.stream import Finished, Started
from llava_grpc.errors import ModelNotFoundError, ResumeFailedError, StartingError
from llava_grpc.logs import REQUEST_ID
from llava_grpc.membership.drain import Drain, answer_drain
from llava_grpc.rpc.convert import card_to_pb, event_to_pb, request_from_pb
from llava_grpc.rpc.identity import new_request_id, new_seed
from llava_grpc.rpc.status import typed_errors
from llava_grpc.v1 import controller_pb2, inference_pb2, worker_pb2
from llava_grpc.worker.host import EngineHost

_log = logging.getLogger(__name__)


class WorkerServicer:
    """Answers for one engine. The node sets `host` once the engine is loaded."""

    def __init__(self, incarnation: str, drain: Drain, settings: WorkerSettings, random: Random) -> None:
        self._incarnation = incarnation
        self._drain = drain
        self._settings = settings
        self._random = random
        self.host: EngineHost | None = None
        self.address = ""

    @typed_errors
    async def ListModels(  # noqa: N802  (the contract's name)
        self, request: inference_pb2.ListModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> inference_pb2.ListModelsResponse:
        return inference_pb2.ListModelsResponse(models=self._models())

    @typed_errors
    async def GetStatus(  # noqa: N802
        self, request: worker_pb2.GetStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> worker_pb2.GetStatusResponse:
        engine = self.host.engine if self.host is not None else None
        return worker_pb2.GetStatusResponse(
            incarnation=self._incarnation,
            models=self._models(),
            slots=engine.slots if engine is not None else 0,
            load=self.load(),
            engine=engine.name if engine is not None else "",
            version=__version__,
            tokens_generated=engine.stats().tokens_generated if engine is not None else 0,
            draining=self._drain.begun.is_set(),
        )

    @typed_errors
    async def Drain(  # noqa: N802
        self, request: worker_pb2.WorkerServiceDrainRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        settings = self._settings
        await answer_drain(self._drain, request, context, settings.server, settings.join_token)

    def _models(self) -> list[inference_pb2.Model]:
        return [card_to_pb(self.host.engine.card)] if self.host is not None else []

    def load(self) -> controller_pb2.Load:
        """How busy the worker is. Nothing waits here: without a slot a request is refused."""
        return controller_pb2.Load(running=self.host.running if self.host is not None else 0, waiting=0)

    @typed_errors
    async def Generate(  # noqa: N802
        self,
        message: inference_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse],
    ) -> None:
        with self._drain.answering():
            await self._generate(message, context)

    async def _generate(
        self,
        message: inference_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse],
    ) -> None:
        host = self.host
        if host is None:
            raise StartingError("the worker is loading its model", retry_after=1.0)
        request = request_from_pb(message)
        request_id = request.request_id or new_request_id(self._random)
        request = replace(request, request_id=request_id).with_seed(new_seed(self._random))
        REQUEST_ID.set(request.request_id)
        card = host.engine.card
        if request.model and not card.answers_to(request.model):
            raise ModelNotFoundError(f"no model is named {request.model!r} here; this worker serves {card.name}")
        if request.begun is not None and not card.fingerprint.may_continue(request.begun):
            raise ResumeFailedError("the model here has other weights or tokens than the answer was begun with")
        answer = await host.submit(request)
        try:
            started = Started(
                request_id=request.request_id,
                model=card.name,
                seed=request.sampling.seed or 0,
                fingerprint=card.fingerprint,
                worker_address=self.address,
                attempt=request.attempt,
            )
            await context.write(event_to_pb(started))
            async for event in answer.events():
                await context.write(event_to_pb(event))
                if isinstance(event, Finished):
                    _log_end(event)
        finally:
            answer.close()


def _log_end(finished: Finished) -> None:
    usage, timings = finished.usage, finished.timings
    _log.info(
        "answered reason=%s prompt_tokens=%d image_tokens=%d completion_tokens=%d first_token=%.3fs total=%.3fs",
        finished.reason.value,
        usage.prompt_tokens,
        usage.image_tokens,
        usage.completion_tokens,
        timings.first_token,
        timings.total,
    )
