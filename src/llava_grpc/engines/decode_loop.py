"""The engine's thread: takes requests up, steps the decoder, hands tokens out, and survives failures.

Laws:

1. Only this thread touches the decoder. Others leave messages; it reads them between two steps.
2. Every request that was accepted gets exactly one Ended or Failed, whatever happens.
3. Before that event, the request's KV pages, its pictures and its place are free.
4. A step that raises ends nobody but who made it raise: the decoder starts afresh, each request of it is tried alone
   with its tokens so far as prompt, and only who fails alone gets Failed. Where everybody fails alone, everybody does,
   and the next request finds a fresh decoder.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from llava_grpc.core.stream import FinishReason
from llava_grpc.engines.base import Began, Ended, EngineEvent, EngineStats, Failed
from llava_grpc.engines.paged import PagedDecoder, Step
from llava_grpc.engines.sequence import Sequence
from llava_grpc.errors import AllSlotsTakenError, EngineFailedError

logger = logging.getLogger(__name__)


@dataclass
class _Inbox:
    """What other threads left, under the loop's condition."""

    arrived: deque[Sequence] = field(default_factory=deque)
    errands: deque[tuple[Callable[[], None], Future[None]]] = field(default_factory=deque)
    closing: bool = False


class DecodeLoop:
    """Owns the thread.

    Args:
        decoder: handed over; nobody else may use it until `close` has returned.
    """

    def __init__(self, decoder: PagedDecoder) -> None:
        self._decoder = decoder
        self._slots = decoder.sizes.slots
        self._condition = threading.Condition()
        self._inbox = _Inbox()
        self._taken = 0  # places of accepted requests, and of those about to be
        self._running: dict[str, Sequence] = {}
        self._count = 0
        self._tokens = 0
        self._doubt: Exception | None = None  # why the decoder may hold what it should not
        self._thread = threading.Thread(target=self._run, name="llava-grpc-engine", daemon=True)
        self._thread.start()

    # What any thread may call.

    def take_place(self) -> None:
        """Reserves a place for a request that is being prepared.

        Raises:
            AllSlotsTakenError: none is free.
            EngineFailedError: the engine is closed.
        """
        with self._condition:
            self._refuse_closed()
            if self._taken >= self._slots:
                raise AllSlotsTakenError(f"all {self._slots} slots are taken", metadata={"slots": str(self._slots)})
            self._taken += 1

    def leave_place(self) -> None:
        """Gives back a place whose request was refused."""
        with self._condition:
            self._taken -= 1

    def submit(self, sequence: Sequence) -> None:
        """Accepts a request for which a place was taken."""
        with self._condition:
            self._refuse_closed()
            self._inbox.arrived.append(sequence)
            self._condition.notify()

    def cancel(self, sequence: Sequence) -> None:
        """Ends it within one step."""
        with self._condition:
            sequence.cancelled = True
            self._condition.notify()

    def drop_shared_pages(self) -> None:
        """Between two steps, makes every KV page that nobody uses unmatchable; returns when that is done."""
        done: Future[None] = Future()
        with self._condition:
            self._refuse_closed()
            self._inbox.errands.append((self._decoder.drop_shared_pages, done))
            self._condition.notify()
        done.result()

    def stats(self) -> EngineStats:
        """How it is now."""
        running = len(self._running)
        return EngineStats(running, max(self._taken - running, 0), self._tokens)

    def close(self) -> None:
        """Ends all requests as cancelled, and the thread."""
        with self._condition:
            self._inbox.closing = True
            self._condition.notify()
        self._thread.join()

    def _refuse_closed(self) -> None:
        if self._inbox.closing:
            raise EngineFailedError("the engine is closed", remedy="Send the request to another worker")

    # The loop's thread.

    def _run(self) -> None:
        while True:
            with self._condition:
                while not (self._running or self._inbox.arrived or self._inbox.errands or self._inbox.closing):
                    self._condition.wait()
                inbox, self._inbox = self._inbox, _Inbox(closing=self._inbox.closing)
            try:
                if inbox.closing:
                    self._shut(inbox)
                else:
                    self._turn(inbox)
            except Exception as error:  # a defect of this module: nobody waits for ever
                logger.exception("the engine's loop failed")
                self._fail_all(error, inbox)
            if inbox.closing:
                return

    def _turn(self, inbox: _Inbox) -> None:
        for errand, done in inbox.errands:
            try:
                errand()
                done.set_result(None)
            except Exception as error:
                done.set_exception(error)
        for sequence in inbox.arrived:
            self._begin(sequence)
        for sequence in [one for one in self._running.values() if one.cancelled]:
            self._end(sequence, FinishReason.CANCELLED)
        if not self._running:
            return
        try:
            if self._doubt is not None:
                raise self._doubt
            self._advance()
        except Exception as error:
            logger.exception("a step of %d requests failed", len(self._running))
            self._recover(error)

    def _begin(self, sequence: Sequence) -> None:
        self._count += 1
        sequence.key = str(self._count)
        self._running[sequence.key] = sequence
        sequence.tell(Began())
        if sequence.cancelled:
            self._end(sequence, FinishReason.CANCELLED)
        elif not self._was_complete(sequence):
            self._add_or_fail(sequence)

    def _was_complete(self, sequence: Sequence) -> bool:
        """Ends a request whose earlier attempt delivered the whole answer, and died before it could say so."""
        text = sequence.text
        if not text.stop_sequence:
            if len(sequence.answer) < sequence.most:
                return False
            text.finish()  # delivers nothing, all tokens were; but a stop string may come to light
        reason = FinishReason.STOP if text.stop_sequence else FinishReason.LENGTH
        self._end(sequence, reason, text.stop_sequence)
        return True

    def _add_or_fail(self, sequence: Sequence) -> None:
        try:
            self._add(sequence)
        except Exception as error:
            logger.exception("request %s cannot be taken up", sequence.name)
            self._fail(sequence, error)

    def _add(self, sequence: Sequence) -> None:
        self._decoder.add(
            sequence.key,
            sequence.prompt + sequence.answer,
            max_new_tokens=sequence.most - len(sequence.answer),
            end_ids=sequence.end_ids,
            choice=sequence.choice,
            prompt_length=len(sequence.prompt),
        )

    def _advance(self) -> None:
        for step in self._decoder.step():
            self._take(self._running[step.key], step)

    def _take(self, sequence: Sequence, step: Step) -> None:
        """A new token of its answer."""
        self._tokens += 1
        sequence.answer.append(step.token_id)
        try:
            if sequence.teller is not None and step.likelihood is not None:
                sequence.teller.keep(step.likelihood)
            self._deliver(sequence, step.token_id)
        except Exception as error:  # the tokenizer's: trying again would skip what it cannot write
            logger.exception("the text of request %s cannot be made", sequence.name)
            self._fail(sequence, error)

    def _deliver(self, sequence: Sequence, token_id: int) -> None:
        """What may be told now that the answer has `token_id`, and its end if this is it."""
        if token_id in sequence.end_ids:
            if last := sequence.text.finish():
                sequence.tell(last)
            self._end(sequence, FinishReason.STOP, sequence.text.stop_sequence)
            return
        delta = sequence.text.push(token_id)
        full = len(sequence.answer) >= sequence.most and not sequence.text.stop_sequence
        if full and (rest := sequence.text.finish()):
            delta = delta.joined(rest) if delta else rest
        if delta:
            sequence.tell(delta)
        if sequence.text.stop_sequence:
            self._end(sequence, FinishReason.STOP, sequence.text.stop_sequence)
        elif full:
            self._end(sequence, FinishReason.LENGTH)

    def _end(self, sequence: Sequence, reason: FinishReason, stop_sequence: str = "") -> None:
        self._finish(sequence, Ended(reason, sequence.usage(), stop_sequence))

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        cause = f"the engine failed on this request: {type(error).__name__}: {error}"
        self._finish(sequence, Failed(EngineFailedError(cause)))

    def _finish(self, sequence: Sequence, event: EngineEvent) -> None:
        """Frees what it holds, then tells its last event: once, and whatever fails on the way."""
        self._running.pop(sequence.key, None)
        if sequence.over:
            return
        sequence.over = True
        try:
            self._decoder.remove(sequence.key)
        except Exception as error:
            logger.exception("the decoder does not let go of request %s", sequence.name)
            self._doubt = error  # the next turn starts it afresh, before a step
        try:
            sequence.release()
        except Exception:
            logger.exception("what request %s holds cannot be released", sequence.name)
        self.leave_place()
        sequence.tell(event)

    def _recover(self, error: Exception) -> None:
        """A fresh decoder; each request alone for one token, then those that got it together again."""
        suspects = list(self._running.values())
        self._doubt = None
        try:
            self._decoder.reset()
        except Exception as again:
            logger.exception("the decoder cannot start afresh")
            self._fail_all(again, _Inbox())
            return
        for sequence in suspects:
            try:
                self._try_alone(sequence)
            except Exception as own:
                logger.error("request %s failed alone: %s", sequence.name, own)
                self._decoder.reset()
                self._fail(sequence, own)
        for sequence in list(self._running.values()):
            self._add_or_fail(sequence)
        logger.warning("after %r: %d of %d requests go on", error, len(self._running), len(suspects))

    def _try_alone(self, sequence: Sequence) -> None:
        self._add(sequence)
        while self._decoder.open:
            for step in self._decoder.step():
                self._take(sequence, step)
                self._decoder.remove(sequence.key)

    def _fail_all(self, error: Exception, inbox: _Inbox) -> None:
        """Everybody: who runs, who had just arrived, who waits for an errand."""
        for _, done in inbox.errands:
            if not done.done():
                done.set_exception(error)
        for sequence in inbox.arrived:
            if not sequence.key:  # not begun
                sequence.tell(Began())
            self._fail(sequence, error)
        for sequence in list(self._running.values()):
            self._fail(sequence, error)

    def _shut(self, inbox: _Inbox) -> None:
        for _, done in inbox.errands:
            done.set_exception(EngineFailedError("the engine is closed"))
        for sequence in inbox.arrived:
            sequence.cancelled = True
            self._begin(sequence)
        for sequence in list(self._running.values()):
            self._end(sequence, FinishReason.CANCELLED)
