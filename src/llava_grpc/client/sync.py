"""The client for code without asyncio: each call is done by an `AsyncClient` in an event loop of its own thread."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self, Unpack

from llava_grpc.client.aio import AsyncClient
from llava_grpc.client.chat import Chat
from llava_grpc.client.fleet import ServedModel, WorkerView
from llava_grpc.client.loop_thread import LoopThread
from llava_grpc.client.pictures import Picture
from llava_grpc.client.prompts import GenerateOptions, PromptLike, build_prompt, build_request, split
from llava_grpc.client.records import RecordView
from llava_grpc.client.stream import AnswerStream
from llava_grpc.config import DEFAULT_MAX_MESSAGE_BYTES
from llava_grpc.core.prompt import GenerationRequest
from llava_grpc.core.states import DrainProgress
from llava_grpc.core.stream import Delta, Finished, Started, TokenLogprob


class Client:
    """`AsyncClient` without asyncio; see there. May be used from several threads at once."""

    def __init__(
        self,
        address: str | Iterable[str] | None = None,
        *,
        timeout: float | None = None,
        attempts: int | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        self._client = AsyncClient(address, timeout=timeout, attempts=attempts, max_message_bytes=max_message_bytes)
        self._thread = LoopThread(f"llava-grpc client of {', '.join(self.addresses)}")
        # Also at the interpreter's exit, while the thread still runs: gRPC objects do not like to outlive their loop.
        self._close = weakref.finalize(self, self._thread.stop, self._client.close)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where calls may go."""
        return self._client.addresses

    @property
    def address(self) -> str:
        """The address that last worked: the next call goes there."""
        return self._client.address

    def models(self, *, timeout: float | None = None) -> list[ServedModel]:
        """The models that can be asked for, in order of name."""
        return self._thread.call(self._client.models, timeout=timeout)

    def workers(self, *, timeout: float | None = None) -> list[WorkerView]:
        """The workers that the controller knows, in order of address."""
        return self._thread.call(self._client.workers, timeout=timeout)

    def drain(
        self,
        worker: str = "",
        *,
        grace: float | None = None,
        join_token: str = "",
        on_progress: Callable[[DrainProgress], object] = lambda progress: None,
    ) -> DrainProgress:
        """Have a worker finish what it has, and go; see `AsyncClient.drain`. `on_progress` is called on another
        thread."""
        return self._thread.call(
            self._client.drain, worker, grace=grace, join_token=join_token, on_progress=on_progress
        )

    def explain(
        self, request_id: str = "", *, limit: int | None = 20, timeout: float | None = None
    ) -> list[RecordView]:
        """What became of a request and why; see `AsyncClient.explain`."""
        return self._thread.call(self._client.explain, request_id, limit=limit, timeout=timeout)

    def generate(
        self,
        prompt: PromptLike | None = None,
        images: Picture | Iterable[Picture] = (),
        *,
        system: str | None = None,
        raw: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Answer:
        """Ask; the request is under way when this returns. See `AsyncClient.generate`."""
        request_options, timeout = split(options)
        request = build_request(build_prompt(prompt, images, system, raw), **request_options)
        return self.send(request, timeout=timeout)

    def send(
        self,
        request: GenerationRequest,
        *,
        timeout: float | None = None,
        on_complete: Callable[[str], None] | None = None,
    ) -> Answer:
        """Send a request as it is; see `AsyncClient.send`."""

        async def send() -> AnswerStream:
            return self._client.send(request, timeout=timeout, on_complete=on_complete)

        return Answer(self._thread.call(send), self._thread, self)

    def ask(
        self,
        prompt: PromptLike,
        images: Picture | Iterable[Picture] = (),
        *,
        system: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> str:
        """The whole answer at once."""
        return self.generate(prompt, images, system=system, **options).text()

    def chat(self, *, system: str | None = None, **options: Unpack[GenerateOptions]) -> Chat[Answer]:
        """A conversation that remembers its turns; the options hold for all of them."""
        return Chat(self.send, system, options)

    def close(self) -> None:
        """Cancel what runs and let go of the connection. Happens by itself at the interpreter's exit."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Answer:
    """The deltas of one answer; iterate it, or call `text()`. `AnswerStream` without asyncio; see there.

    `cancel` may be called from any thread, the rest is for one reader at a time.
    """

    def __init__(self, stream: AnswerStream, thread: LoopThread, client: Client) -> None:
        self._stream = stream
        self._thread = thread
        self._client = client  # an answer that is read keeps its client alive

    @property
    def request_id(self) -> str:
        """The request's name, also in the nodes' logs."""
        return self._stream.request_id

    @property
    def started(self) -> Started | None:
        """Who answered first, once that is known."""
        return self._stream.started

    @property
    def answering(self) -> Started | None:
        """Who answers now; another than `started` where an attempt failed."""
        return self._stream.answering

    @property
    def attempts(self) -> int:
        """How often the request was sent, 1 where nothing failed."""
        return self._stream.attempts

    @property
    def resumed(self) -> int:
        """How often this client had the answer go on after its first token."""
        return self._stream.resumed

    @property
    def finished(self) -> Finished | None:
        """Why it ended and what it took, once it is complete."""
        return self._stream.finished

    @property
    def text_so_far(self) -> str:
        """The text that has come until now."""
        return self._stream.text_so_far

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens that have come until now."""
        return self._stream.token_ids

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        """Of the tokens that have come until now, if they were asked for."""
        return self._stream.logprobs

    @property
    def done(self) -> bool:
        """Whether nothing more will come: complete, failed or cancelled."""
        return self._stream.done

    def text(self) -> str:
        """The whole answer; waits for its end."""
        if self.done and self.finished is not None:
            return self.text_so_far  # also after the client was closed
        return self._thread.call(self._stream.text)

    def __iter__(self) -> Iterator[Delta]:
        try:
            while not (self.done and self.finished is not None):
                delta = self._thread.call(self._stream.next_delta)
                if delta is None:
                    return
                yield delta
        finally:
            self._leave()

    def cancel(self) -> None:
        """Cancel the request, unless it is complete; whoever reads it gets RequestCancelledError."""
        if not self.done:
            self._thread.call(self._stream.cancel)

    def _leave(self) -> None:
        """Cancel without waiting: this may run in a garbage collection or at the interpreter's exit."""
        if not self.done:
            self._thread.post(self._stream.leave)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
