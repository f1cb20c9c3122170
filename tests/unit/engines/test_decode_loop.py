"""The loop's laws when its decoder fails, with a decoder that does as it is told."""

import threading
from types import SimpleNamespace

import pytest

from llava_grpc.core.stream import FinishReason, Usage
from llava_grpc.engines.base import Began, Ended, Failed
from llava_grpc.engines.decode_loop import DecodeLoop
from llava_grpc.engines.paged import Step
from llava_grpc.engines.sequence import Sequence
from llava_grpc.engines.text import AnswerText
from llava_grpc.errors import EngineFailedError
from llava_grpc.testing.reference import Answer


class Decoder:
    """Gives every sequence a token a step. `faults` maps a method's name to errors, one for each call, or None."""

    def __init__(self):
        self.sizes = SimpleNamespace(slots=8)
        self.left: dict[str, int] = {}
        self.faults: dict[str, list[Exception | None]] = {}
        self.resets = 0

    def _call(self, name: str) -> None:
        if self.faults.get(name) and (fault := self.faults[name].pop(0)):
            raise fault

    @property
    def open(self) -> int:
        return len(self.left)

    def add(self, key, token_ids, *, max_new_tokens, **options):
        self._call("add")
        self.left[key] = max_new_tokens

    def remove(self, key):
        self._call("remove")
        self.left.pop(key, None)

    def step(self):
        self._call("step")
        steps = []
        for key in list(self.left):
            self.left[key] -= 1
            ended = not self.left[key]
            steps.append(Step(key, 65, ended))
            if ended:
                del self.left[key]
        return steps

    def drop_shared_pages(self):
        self._call("drop_shared_pages")

    def reset(self):
        self.resets += 1
        self._call("reset")
        self.left.clear()


class Stage:
    """A loop, and requests that arrive together: in the turn after an errand that holds the loop."""

    def __init__(self):
        self.decoder = Decoder()
        self.loop = DecodeLoop(self.decoder)
        self.released = 0

    def submit(self, most: int = 3, decode=lambda ids: "a" * len(ids), emitted=()) -> tuple[Answer, Sequence]:
        def release() -> None:
            self.released += 1

        answer = Answer()
        text = AnswerText(decode, frozenset(), (), emitted)
        sequence = Sequence("r", [1, 2], 0, list(emitted), most, frozenset(), text, answer, release)
        self.loop.take_place()
        self.loop.submit(sequence)
        return answer, sequence

    def together(self, count: int, most: int = 3, before=lambda: None) -> list[Answer]:
        held, go_on = threading.Event(), threading.Event()
        drop = self.decoder.drop_shared_pages

        def hold() -> None:
            held.set()
            assert go_on.wait(10)

        self.decoder.drop_shared_pages = hold
        errand = threading.Thread(target=self.loop.drop_shared_pages)
        errand.start()
        assert held.wait(10)
        self.decoder.drop_shared_pages = drop
        answers = [self.submit(most)[0] for _ in range(count)]
        before()
        go_on.set()
        errand.join()
        return answers

    def is_free(self, requests: int) -> bool:
        return self.released == requests and self.loop._taken == 0 and not self.decoder.left


@pytest.fixture
def stage():
    stage = Stage()
    yield stage
    stage.loop.close()


def kinds(answers: list[Answer]) -> list[type]:
    """What the answers ended with; each began once before, and nothing came after."""
    for answer in answers:
        answer.wait(5)
        assert isinstance(answer.events[0], Began)
        assert sum(isinstance(event, Began | Ended | Failed) for event in answer.events) == 2
        assert answer._queue.empty()
    return [type(answer.events[-1]) for answer in answers]


def test_of_those_that_arrive_together_only_who_cannot_be_taken_up_fails(stage):
    stage.decoder.faults["add"] = [None, RuntimeError("out of memory")]
    assert kinds(stage.together(4)) == [Ended, Failed, Ended, Ended]
    assert stage.is_free(4)
    assert stage.decoder.resets == 0


def test_who_cannot_be_taken_up_again_fails_alone(stage):
    stage.decoder.faults["step"] = [RuntimeError("once")]
    stage.decoder.faults["add"] = [*[None] * 6, RuntimeError("out of memory")]  # begin, alone, then again
    assert kinds(stage.together(3, most=5)) == [Failed, Ended, Ended]
    assert stage.is_free(3)


def test_a_decoder_that_does_not_let_go_is_started_afresh_before_it_steps(stage):
    stage.decoder.faults["remove"] = [RuntimeError("inconsistent")]
    answer, sequence = stage.submit(1_000_000_000)
    while not answer.deltas:
        answer.next()
    stage.loop.cancel(sequence)
    assert answer.wait(5).end.reason is FinishReason.CANCELLED
    assert kinds(stage.together(2)) == [Ended, Ended]
    assert stage.decoder.resets == 1
    assert stage.is_free(3)


def test_whose_text_cannot_be_made_fails_alone_and_no_step_is_repeated(stage):
    def decode(ids):
        if len(ids) > 1:
            raise UnicodeError("no such token")
        return "a"

    broken: list[Answer] = []
    others = stage.together(2, before=lambda: broken.append(stage.submit(3, decode)[0]))
    assert kinds([*broken, *others]) == [Failed, Ended, Ended]
    assert stage.decoder.resets == 0
    assert stage.is_free(3)


def test_a_complete_answer_that_comes_again_ends_without_a_step(stage):
    stage.decoder.faults["add"] = [RuntimeError("nothing is to be added")]
    answer, _ = stage.submit(3, emitted=(65, 65, 65))
    assert answer.wait(5).end == Ended(FinishReason.LENGTH, Usage(2, 0, 3))
    assert answer.deltas == []


def test_a_release_that_fails_loses_neither_event_nor_place(stage):
    answer, sequence = stage.submit(1_000_000_000)

    def fail() -> None:
        raise KeyError("picture")

    sequence.release = fail
    stage.loop.cancel(sequence)
    assert kinds([answer]) == [Ended]
    assert stage.loop._taken == 0


def test_a_defect_of_the_loop_ends_everybody_and_every_errand(stage, monkeypatch):
    """Those that had not begun too."""
    begin = stage.loop._begin
    calls: list[Sequence] = []

    def defective(sequence: Sequence) -> None:
        calls.append(sequence)
        if len(calls) == 2:
            raise RuntimeError("defect")
        begin(sequence)

    monkeypatch.setattr(stage.loop, "_begin", defective)
    assert kinds(stage.together(4)) == [Failed] * 4
    assert stage.is_free(4)
    assert kinds([stage.submit()[0]]) == [Ended]

    errands: list[Exception] = []

    def errand() -> None:
        try:
            stage.loop.drop_shared_pages()
        except RuntimeError as error:
            errands.append(error)

    def defective_turn(inbox) -> None:
        monkeypatch.undo()
        raise RuntimeError("defect")

    monkeypatch.setattr(stage.loop, "_turn", defective_turn)
    thread = threading.Thread(target=errand, daemon=True)
    thread.start()
    thread.join(5)
    assert [str(error) for error in errands] == ["defect"]


def test_closing_ends_everybody_whatever_fails(stage):
    stage.decoder.faults["remove"] = [RuntimeError("inconsistent")] * 3
    closer = threading.Thread(target=stage.loop.close)

    def close() -> None:
        closer.start()
        while not stage.loop._inbox.closing:
            pass

    running = stage.submit(1_000_000_000)[0]
    running.next()
    arrived = stage.together(3, before=close)
    closer.join(5)
    assert not closer.is_alive()
    assert kinds([running, *arrived]) == [Ended] * 4
    assert (stage.released, stage.loop._taken) == (4, 0)
    with pytest.raises(EngineFailedError, match="closed"):
        stage.submit()
