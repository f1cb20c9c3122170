"""InferenceService on the controller: one model list over all workers, and Generate by proxy."""

from __future__ import annotations

import logging

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from llava_grpc.controller.fleet import Fleet
from llava_grpc.controller.proxy import Proxy
from llava_grpc.core.admission import Entry
from llava_grpc.core.demand import plain
from llava_grpc.core.prompt import check_request_id
from llava_grpc.errors import PromptInvalidError, ShuttingDownError
from llava_grpc.logs import REQUEST_ID
from llava_grpc.rpc.convert import card_to_pb, priority_from_pb
from llava_grpc.rpc.identity import new_request_id, new_seed
from llava_grpc.rpc.status import typed_errors
from llava_grpc.v1 import inference_pb2 as pb

CHARACTERS_PER_TOKEN = 4
TOKENS_PER_PICTURE = 576
"""LLaVA-1.5's: 24 x 24 patches."""

_log = logging.getLogger(__name__)
_Context = grpc.aio.ServicerContext[bytes, bytes]


class InferenceServicer:
    """Speaks bytes: what a worker says is passed on as it came."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._proxy = Proxy(fleet)
        self.draining = False

    def handler(self) -> grpc.GenericRpcHandler:
        """The service, for a server. Without (de)serializers gRPC hands over bytes."""
        service = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
        return grpc.method_handlers_generic_handler(
            service,
            {
                "ListModels": grpc.unary_unary_rpc_method_handler(self.list_models),
                "Generate": grpc.unary_stream_rpc_method_handler(self.generate),
            },
        )

    @typed_errors
    async def list_models(self, request: bytes, context: _Context) -> bytes:
        """The union over the live workers."""
        waiting = self._fleet.dispatcher.waiting
        models = [
            card_to_pb(listed.card, listed.workers, waiting(listed.card.name))
            for listed in self._fleet.registry.models()
        ]
        return pb.ListModelsResponse(models=models).SerializeToString()

    @typed_errors
    async def generate(self, request: bytes, context: _Context) -> None:
        """Complete the request (id, model, seed), choose a worker, pass its frames on."""
        if self.draining:
            raise ShuttingDownError("the controller is stopping")
        try:
            message = pb.GenerateRequest.FromString(request)
        except DecodeError:
            raise PromptInvalidError(
                "the message is not a GenerateRequest", remedy="Generate the client from this release's protos"
            ) from None
        check_request_id(message.request_id)
        request_id = message.request_id or new_request_id()
        REQUEST_ID.set(request_id)
        model = self._fleet.dispatcher.resolve(message.model)
        # Joined messages merge: what is missing is added behind, and the pictures stay where they are.
        addition = pb.GenerateRequest(request_id=request_id, model=model)
        if not message.sampling.HasField("seed"):
            addition.sampling.seed = new_seed()
        _log.info("generate model=%s bytes=%d", model, len(request))
        await self._proxy.answer(context, model, request + addition.SerializeToString(), self._entry(message, context))

    def _entry(self, message: pb.GenerateRequest, context: _Context) -> Entry:
        """The request as the queue sees it. Its key is our own: clients may use a request id twice."""
        now, left = self._fleet.clock(), context.time_remaining()
        return Entry(
            key=new_request_id(),
            tenant=message.tenant,
            priority=priority_from_pb(message.priority),
            demand=plain(_estimated_tokens(message)),
            deadline=None if left is None else now + left,
            arrived=now,
        )


def _estimated_tokens(message: pb.GenerateRequest) -> int:
    """About how long the prompt is, without a tokenizer; set right when the worker has said how long it was."""
    if message.HasField("raw"):
        texts, pictures = [message.raw.text], len(message.raw.images)
    else:
        parts = [part for turn in message.conversation.turns for part in turn.parts]
        texts, pictures = [part.text for part in parts], sum(part.HasField("image") for part in parts)
    return sum(len(text) for text in texts) // CHARACTERS_PER_TOKEN + pictures * TOKENS_PER_PICTURE
