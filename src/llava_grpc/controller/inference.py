"""InferenceService on the controller: one model list over all workers, and Generate by proxy."""

from __future__ import annotations

import logging

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from llava_grpc.controller.fleet import Fleet
from llava_grpc.controller.proxy import Proxy
from llava_grpc.core.prompt import check_request_id
from llava_grpc.errors import PromptInvalidError, ShuttingDownError
from llava_grpc.logs import REQUEST_ID
from llava_grpc.rpc.convert import card_to_pb
from llava_grpc.rpc.identity import new_request_id, new_seed
from llava_grpc.rpc.status import typed_errors
from llava_grpc.v1 import inference_pb2 as pb

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
        models = [card_to_pb(listed.card, listed.workers) for listed in self._fleet.registry.models()]
        return pb.ListModelsResponse(models=models).SerializeToString()

    @typed_errors
    async def generate(self, request: bytes, context: _Context) -> None:
        """Complete the request (id, model, seed), choose a worker, pass its frames on."""
        if self.draining:
            raise ShuttingDownError("the controller is stopping")
        try:
            message = pb.GenerateRequest.FromString(request)
        except DecodeError:
            raise PromptInvalidError("the message is not a GenerateRequest") from None
        check_request_id(message.request_id)
        request_id = message.request_id or new_request_id()
        REQUEST_ID.set(request_id)
        model = self._fleet.dispatcher.resolve(message.model)
        # Joined messages merge: what is missing is added behind, and the pictures stay where they are.
        addition = pb.GenerateRequest(request_id=request_id, model=model)
        if not message.sampling.HasField("seed"):
            addition.sampling.seed = new_seed()
        _log.info("generate model=%s bytes=%d", model, len(request))
        await self._proxy.answer(context, model, request + addition.SerializeToString())
