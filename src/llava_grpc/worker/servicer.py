"""The worker's side of the contract: InferenceService and WorkerService."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import grpc.aio

from llava_grpc import __version__
from llava_grpc.rpc.identity import new_request_id, new_seed
from llava_grpc.core.stream import Finished, Started
from llava_grpc.errors import ModelNotFoundError, ShuttingDownError, StartingError
from llava_grpc.logs import REQUEST_ID
from llava_grpc.rpc.convert import card_to_pb, event_to_pb, request_from_pb
from llava_grpc.rpc.status import typed_errors
from llava_grpc.v1 import controller_pb2, inference_pb2, worker_pb2
from llava_grpc.worker.host import EngineHost

_log = logging.getLogger(__name__)


class WorkerServicer:
    """Answers for one engine. `ready` and `draining` are set by the node as it starts and stops."""

    def __init__(self, host: EngineHost, incarnation: str) -> None:
        self._host = host
        self._incarnation = incarnation
        self.address = ""
        self.ready = False
        self.draining = False

    @typed_errors
    async def ListModels(  # noqa: N802  (the contract's name)
        self, request: inference_pb2.ListModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> inference_pb2.ListModelsResponse:
        models = [card_to_pb(self._host.engine.card)] if self.ready else []
        return inference_pb2.ListModelsResponse(models=models)

    @typed_errors
    async def GetStatus(  # noqa: N802
        self, request: worker_pb2.GetStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> worker_pb2.GetStatusResponse:
        engine = self._host.engine
        return worker_pb2.GetStatusResponse(
            incarnation=self._incarnation,
            models=[card_to_pb(engine.card)] if self.ready else [],
            slots=engine.slots if self.ready else 0,
            load=self.load(),
            engine=engine.name,
            version=__version__,
        )

    def load(self) -> controller_pb2.Load:
        """How busy the worker is. Nothing waits here: without a slot a request is refused."""
        return controller_pb2.Load(running=self._host.running, waiting=0)

    @typed_errors
    async def Generate(  # noqa: N802
        self,
        message: inference_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse],
    ) -> None:
        if self.draining:
            raise ShuttingDownError("the worker is stopping")
        if not self.ready:
            raise StartingError("the worker is loading its model", retry_after=1.0)
        request = request_from_pb(message)
        request = replace(request, request_id=request.request_id or new_request_id()).with_seed(new_seed())
        REQUEST_ID.set(request.request_id)
        card = self._host.engine.card
        if request.model and not card.answers_to(request.model):
            raise ModelNotFoundError(f"no model is named {request.model!r} here; this worker serves {card.name}")
        answer = await self._host.submit(request)
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
