"""The client, for asyncio. `sync.Client` is a thin face on it."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from random import Random
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc.aio

from llava_grpc.client import calls
from llava_grpc.client.addresses import addresses_of
from llava_grpc.client.chat import Chat
from llava_grpc.client.failover import ATTEMPTS
from llava_grpc.client.fleet import ServedModel, WorkerView
from llava_grpc.client.pictures import Picture
from llava_grpc.client.prompts import GenerateOptions, PromptLike, build_prompt, build_request
from llava_grpc.client.records import RecordView
from llava_grpc.client.route import Route
from llava_grpc.client.stream import AnswerStream
from llava_grpc.config import DEFAULT_MAX_MESSAGE_BYTES, SettingsError, check_grace
from llava_grpc.core.prompt import GenerationRequest, Priority
from llava_grpc.core.states import DrainProgress
from llava_grpc.errors import LlavaGrpcError, RequestCancelledError
from llava_grpc.rpc.channels import open_channel
from llava_grpc.rpc.world import OpenChannel

_T = TypeVar("_T")
_Call = Callable[[grpc.aio.Channel, str, float | None], Awaitable[_T]]


class AsyncClient:
    """A client of controllers, or of single workers. Use it as a context manager, or close it.

    It asks the address that last worked, and the next one where that fails; a stream that breaks is resumed there, and
    its reader sees one answer, once (docs/failures.md).

    Args:
        address: HOST:PORT; or several of them, in a sequence or with commas between; or what else gRPC dials, such as
            dns:///NAME:PORT for all the addresses that a name stands for. None takes the environment variable
            LLAVA_GRPC_CONTROLLER, or else 127.0.0.1:21001.
        timeout: seconds that each call may take, where it does not say so itself. None: no limit.
        attempts: failures in a row, without a new token, after which a call gives up. None: 3, or as many as there are
            addresses if these are more.
        max_message_bytes: the largest message sent or taken; a request carries its pictures.
        open_channel: opens a channel to an address that takes messages of so many bytes.
        random: where chance comes from, for the pauses between attempts.

    Every call raises the errors of `llava_grpc.errors`; nobody at the only address is a ServerUnreachableError at once.
    """

    def __init__(
        self,
        address: str | Iterable[str] | None = None,
        *,
        timeout: float | None = None,
        attempts: int | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        open_channel: OpenChannel = open_channel,
        random: Random | None = None,
    ) -> None:
        self.addresses = addresses_of(address)
        self.timeout = timeout
        if attempts is not None and attempts < 1:
            raise SettingsError(f"{attempts} attempts are none: allow at least 1")
        self._route = Route(
            self.addresses,
            attempts=attempts or max(ATTEMPTS, len(self.addresses)),
            max_message_bytes=max_message_bytes,
            open_channel=open_channel,
            random=random or Random(),
        )
        self._streams: weakref.WeakSet[AnswerStream] = weakref.WeakSet()

    @property
    def address(self) -> str:
        """The address that last worked: the next call goes there."""
        return self.addresses[self._route.at]

    async def models(self, *, timeout: float | None = None) -> list[ServedModel]:
        """The models that can be asked for, in order of name."""
        return await self._answer(calls.list_models, timeout)

    async def workers(self, *, timeout: float | None = None) -> list[WorkerView]:
        """The workers that the controller knows, in order of address."""
        return await self._answer(calls.list_workers, timeout)

    async def drain(
        self,
        worker: str = "",
        *,
        grace: float | None = None,
        join_token: str = "",
        on_progress: Callable[[DrainProgress], object] = lambda progress: None,
    ) -> DrainProgress:
        """Have a worker take nothing new, finish what it has, leave its controllers and end; returns once it has left.

        That takes as long as it takes: the client's own timeout does not count. The drain goes on where this is
        cancelled.

        Args:
            worker: its address, as the controller lists it. Empty: the node that this client is a client of.
            grace: seconds for which its running streams may go on. None: as the worker was started with.
            join_token: the fleet's, where it has one.
            on_progress: hears how far it is, at each change and every second.

        Raises:
            WorkerNotFoundError: the controller knows no such worker; it may have left already.
            WorkerUnreachableError, WorkerLostError: it does not answer, or not to the end.
            JoinRefusedError: the token is missing or wrong.
            SettingsError: `grace` makes no sense.
        """
        if grace is not None:
            check_grace(grace)
        return await calls.drain(
            self._route.channel(self.address), self.address, worker, grace, join_token, on_progress
        )

    async def explain(
        self, request_id: str = "", *, limit: int | None = 20, timeout: float | None = None
    ) -> list[RecordView]:
        """What became of a request and why, as the controller remembers it; without an id of the latest requests.

        A client may use an id twice, so there may be several. At most the latest `limit`, None for all that are kept
        (some thousands); the oldest first; empty where nothing is known of it, any more or at all.
        """
        if limit is not None and limit < 1:
            return []
        return await self._answer(partial(calls.explain, request_id=request_id, limit=limit or 0), timeout)

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
        stream = AnswerStream(request, self._route.attempts(self._deadline(timeout)), on_complete)
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
        for stream in list(self._streams):  # closing a channel leaves streams that nobody reads just now running
            stream.leave("the client was closed")
        await self._route.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _answer(self, call: _Call[_T], timeout: float | None) -> _T:
        """What a call that may be sent any number of times is answered, at whichever address."""
        attempts = self._route.attempts(self._deadline(timeout))
        while True:
            try:
                answer = await call(attempts.channel, attempts.address, attempts.time_left)
            except LlavaGrpcError as error:
                await attempts.another(error, self._route.closed)
                if self._route.closed.is_set():
                    raise RequestCancelledError("the client was closed") from error
            else:
                attempts.answered()
                return answer

    def _deadline(self, timeout: float | None) -> float | None:
        return self.timeout if timeout is None else timeout
