"""InferenceService on the controller: one model list over all workers, and Generate by proxy."""

from __future__ import annotations

import asyncio
import logging

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from llava_grpc.controller.fleet import Fleet
from llava_grpc.controller.proxy import Proxy
from llava_grpc.controller.relay import Relay
from llava_grpc.controller.watchdog import Watchdog
from llava_grpc.core.admission import Entry
from llava_grpc.core.demand import Demand
from llava_grpc.core.prompt import check_request_id
from llava_grpc.errors import PromptInvalidError
from llava_grpc.logs import REQUEST_ID
from llava_grpc.membership.drain import Drain
from llava_grpc.rpc.convert import card_to_pb, fingerprint_from_pb, priority_from_pb
from llava_grpc.rpc.demand import demand_of
from llava_grpc.rpc.identity import new_request_id, new_seed
from llava_grpc.rpc.status import typed_errors
from llava_grpc.v1 import inference_pb2 as pb

LARGE = 2**20
"""Bytes of a message from which its pictures are digested off the event loop."""

_log = logging.getLogger(__name__)
_Context = grpc.aio.ServicerContext[bytes, bytes]


class InferenceServicer:
    """Speaks bytes: what a worker says is passed on as it came."""

    def __init__(self, fleet: Fleet, drain: Drain) -> None:
        self._fleet = fleet
        self._drain = drain
        self.watchdog = Watchdog(fleet)
        self._proxy = Proxy(fleet, self.watchdog)

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
        with self._drain.answering():
            await self._generate(request, context)

    async def _generate(self, request: bytes, context: _Context) -> None:
        try:
            message = pb.GenerateRequest.FromString(request)
        except DecodeError:
            raise PromptInvalidError(
                "the message is not a GenerateRequest", remedy="Generate the client from this release's protos"
            ) from None
        check_request_id(message.request_id)
        request_id = message.request_id or new_request_id(self._fleet.world.random)
        REQUEST_ID.set(request_id)
        model = self._fleet.dispatcher.resolve(message.model)
        # Joined messages merge: what is missing is added behind, and the pictures stay where they are.
        addition = pb.GenerateRequest(request_id=request_id, model=model)
        if not message.sampling.HasField("seed"):
            addition.sampling.seed = new_seed(self._fleet.world.random)
        _log.info("generate model=%s bytes=%d", model, len(request))
        message.model = model
        demand = demand_of(message) if len(request) < LARGE else await asyncio.to_thread(demand_of, message)
        entry = self._entry(message, request_id, demand, context)
        relay = Relay(
            context,
            request + addition.SerializeToString(),
            earlier=message.attempt,
            base=len(message.emitted_token_ids),
            begun_under=entry.begun,
        )
        await self._proxy.answer(context, relay, model, entry)

    def _entry(self, message: pb.GenerateRequest, request_id: str, demand: Demand, context: _Context) -> Entry:
        """The request as the queue sees it. Its key is our own: clients may use a request id twice."""
        now, left = self._fleet.clock(), context.time_remaining()
        return Entry(
            key=new_request_id(self._fleet.world.random),
            request_id=request_id,
            tenant=message.tenant,
            priority=priority_from_pb(message.priority),
            demand=demand,
            deadline=None if left is None else now + left,
            arrived=now,
            begun=fingerprint_from_pb(message.begun) if message.HasField("begun") else None,
        )
