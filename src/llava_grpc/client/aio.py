"""The client, for asyncio. `sync.Client` is a thin face on it."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self, Unpack

import grpc.aio

from llava_grpc.client import calls
from llava_grpc.client.chat import Chat
from llava_grpc.client.fleet import ServedModel, WorkerView
from llava_grpc.client.pictures import Picture
from llava_grpc.client.prompts import GenerateOptions, PromptLike, build_prompt, build_request
from llava_grpc.client.records import RecordView
from llava_grpc.client.stream import AnswerStream
from llava_grpc.config import DEFAULT_CONTROLLER_PORT, DEFAULT_MAX_MESSAGE_BYTES, SettingsError, is_address
from llava_grpc.core.prompt import GenerationRequest, Priority
from llava_grpc.errors import MessageTooLargeError, SamplingInvalidError
from llava_grpc.rpc.channels import open_channel
from llava_grpc.rpc.convert import request_to_pb
from llava_grpc.v1.inference_pb2_grpc import InferenceServiceStub

ADDRESS_VARIABLE = "LLAVA_GRPC_CONTROLLER"
DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_CONTROLLER_PORT}"


class AsyncClient:
    """A client of a controller, or of a single worker. Use it as a context manager, or close it.

    Args:
        address: HOST:PORT. None takes the environment variable LLAVA_GRPC_CONTROLLER, or else 127.0.0.1:21001.
        timeout: seconds that each call may take, where it does not say so itself. None: no limit.
        max_message_bytes: the largest message sent or taken; a request carries its pictures.

    Every call raises the errors of `llava_grpc.errors`; nobody at the address is a ServerUnreachableError at once.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        self.address = _checked(address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS)
        self.timeout = timeout
        self._max_message_bytes = max_message_bytes
        self._channel: grpc.aio.Channel | None = None
        self._streams: weakref.WeakSet[AnswerStream] = weakref.WeakSet()
        self._closed = False

    async def models(self, *, timeout: float | None = None) -> list[ServedModel]:
        """The models that can be asked for, in order of name."""
        return await calls.list_models(self._open(), self.address, self._deadline(timeout))

    async def workers(self, *, timeout: float | None = None) -> list[WorkerView]:
        """The workers that the controller knows, in order of address."""
        return await calls.list_workers(self._open(), self.address, self._deadline(timeout))

    async def explain(
        self, request_id: str = "", *, limit: int | None = 20, timeout: float | None = None
    ) -> list[RecordView]:
        """What became of a request and why, as the controller remembers it; without an id of the latest requests.

        A client may use an id twice, so there may be several. At most the latest `limit`, None for all that are kept
        (some thousands); the oldest first; empty where nothing is known of it, any more or at all.
        """
        if limit is not None and limit < 1:
            return []
        return await calls.explain(self._open(), self.address, request_id, limit or 0, self._deadline(timeout))

    def generate(
        self,
        prompt: PromptLike | None = None,
        images: Picture | Iterable[Picture] = (),
        *,
        system: str | None = None,
        raw: str | None = None,
        model: str = "",
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_new_tokens: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        min_new_tokens: int = 0,
        ignore_eos: bool = False,
        logprobs: int | None = None,
        request_id: str = "",
        priority: Priority = Priority.NORMAL,
        tenant: str = "",
        timeout: float | None = None,
    ) -> AnswerStream:
        """Ask; the request is under way when this returns. See `GenerateOptions` for the options.

        Picture files are read, and PIL images encoded, before this returns: from a busy event loop, make large ones
        in a thread first (`await asyncio.to_thread(picture, source)`).

        Args:
            prompt: a question, or a conversation: turns made by `user`, `assistant` and `system`, the user's last.
            images: for a question or a raw prompt: a path, bytes, PIL image or `Image`, or several.
            system: instructions, as a first turn.
            raw: in place of a prompt, text that is continued as it is; each ``<image>`` stands for the next picture.

        Raises:
            InvalidRequestError: whatever can be seen to be wrong without the model.
        """
        request = build_request(
            build_prompt(prompt, images, system, raw),
            model=model,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            max_new_tokens=max_new_tokens,
            seed=seed,
            stop=stop,
            stop_token_ids=stop_token_ids,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias,
            min_new_tokens=min_new_tokens,
            ignore_eos=ignore_eos,
            logprobs=logprobs,
            request_id=request_id,
            priority=priority,
            tenant=tenant,
        )
        return self.send(request, timeout=timeout)

    def send(
        self,
        request: GenerationRequest,
        *,
        timeout: float | None = None,
        on_complete: Callable[[str], None] | None = None,
    ) -> AnswerStream:
        """Send a request as it is; `on_complete` gets the text of a complete answer.

        Raises:
            MessageTooLargeError: the request is over this client's own limit.
            SamplingInvalidError: a number that the wire cannot carry.
        """
        try:
            message = request_to_pb(request)
        except ValueError as error:
            raise SamplingInvalidError(f"a number is out of range: {error}", remedy="Use 32-bit numbers") from error
        size = message.ByteSize()
        if size > self._max_message_bytes:
            raise MessageTooLargeError(
                f"the request has {size:,} bytes, over this client's limit of {self._max_message_bytes:,}",
                metadata={"bytes": str(size), "limit": str(self._max_message_bytes)},
            )
        call = InferenceServiceStub(self._open()).Generate(message, timeout=self._deadline(timeout))
        stream = AnswerStream(call, request.request_id, self.address, on_complete)
        self._streams.add(stream)
        return stream

    async def ask(
        self,
        prompt: PromptLike,
        images: Picture | Iterable[Picture] = (),
        *,
        system: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> str:
        """The whole answer at once."""
        async with self.generate(prompt, images, system=system, **options) as stream:
            return await stream.text()

    def chat(self, *, system: str | None = None, **options: Unpack[GenerateOptions]) -> Chat[AnswerStream]:
        """A conversation that remembers its turns; the options hold for all of them."""
        return Chat(self.send, system, options)

    async def close(self) -> None:
        """Cancel what runs and let go of the connection."""
        self._closed = True
        for stream in list(self._streams):  # closing a channel leaves streams that nobody reads just now running
            stream.leave("the client was closed")
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _open(self) -> grpc.aio.Channel:
        """The channel; made when first needed, as it belongs to the event loop that runs then."""
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._channel is None:
            self._channel = open_channel(self.address, self._max_message_bytes)
        return self._channel

    def _deadline(self, timeout: float | None) -> float | None:
        return self.timeout if timeout is None else timeout


def _checked(address: str) -> str:
    """An address that gRPC cannot take for another one (it dials a bare name at port 443)."""
    if address.startswith(("http://", "https://")):
        raise SettingsError(f"the address {address!r} is not HOST:PORT: leave out the {address.split(':')[0]}://")
    if "/" not in address and not is_address(address):  # unix:/..., dns:///... are gRPC's to understand
        hint = ""
        if re.fullmatch(r"[^\s:/]+:?", address):
            hint = f"; write {address.rstrip(':')}:{DEFAULT_CONTROLLER_PORT}"
        elif address.count(":") > 1 and not address.startswith("["):
            hint = f"; write [{address}]:{DEFAULT_CONTROLLER_PORT}"
        raise SettingsError(f"the address {address!r} is not HOST:PORT with a port from 1 to 65535{hint}")
    return address
