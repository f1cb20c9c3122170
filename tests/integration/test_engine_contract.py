"""The laws of `engines/base.py`, for every engine that needs no extra."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from llava_grpc.config import EngineSettings
from llava_grpc.core.prompt import Conversation, GenerationRequest, Image, RawPrompt, Role, Sampling, Turn
from llava_grpc.core.stream import Delta, FinishReason
from llava_grpc.demo import sample_pictures
from llava_grpc.engines.base import Began, Ended, Engine, EngineStartError, Failed, load_engine
from llava_grpc.errors import LlavaGrpcError, PromptTooLongError, SamplingInvalidError
from llava_grpc.testing.reference import Answer, submit

ENGINES = {
    "echo": ("echo", EngineSettings(options={"tokens": "400"})),
    "echo that batches": (
        "echo",
        EngineSettings(
            options={
                "tokens": "400",
                "request_ms": "0.5",
                "picture_ms": "2",
                "prompt_token_ms": "0.01",
                "step_ms": "0.5",
                "step_sequence_ms": "0.1",
            }
        ),
    ),
    "transformers": ("transformers", EngineSettings(threads=1, speed=1.0, image_cache_bytes=2**22)),
}
PROMPT = RawPrompt("Once upon a time there was a shape")


@pytest.fixture(scope="module", params=list(ENGINES))
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = load_engine(*ENGINES[request.param])
    engine.start(lambda what: None)
    yield engine
    engine.close()


def test_events_come_in_order_and_offsets_follow_on(engine: Engine):
    answer = submit(engine, PROMPT, Sampling(max_new_tokens=20)).wait()
    assert isinstance(answer.events[0], Began)
    assert isinstance(answer.events[-1], Ended)
    assert all(isinstance(event, Delta) for event in answer.events[1:-1])
    offset = 0
    for delta in answer.deltas:
        offset += len(delta.token_ids)
        assert delta.end_offset == offset
    assert answer.end.usage.completion_tokens >= offset
    assert answer.end.reason in (FinishReason.STOP, FinishReason.LENGTH)


def test_nothing_comes_after_the_end(engine: Engine):
    ended = submit(engine, PROMPT, Sampling(max_new_tokens=3)).wait()
    assert ended.ticket is not None
    ended.ticket.cancel()
    submit(engine, PROMPT, Sampling(max_new_tokens=3)).wait()  # the engine has been round since
    assert ended._queue.empty()


def test_a_cancelled_request_ends_once_however_often_it_is_cancelled(engine: Engine):
    reached, go_on = threading.Event(), threading.Event()

    class HeldAnswer(Answer):
        """Holds the engine's thread at the first delta, so that the cancel is sure to come first."""

        def __call__(self, event: object) -> None:
            super().__call__(event)  # type: ignore[arg-type]
            if isinstance(event, Delta) and not reached.is_set():
                reached.set()
                assert go_on.wait(10)

    answer = HeldAnswer()
    sampling = Sampling(max_new_tokens=300, seed=0)
    ticket = engine.submit(GenerationRequest(request_id="c", model="", prompt=PROMPT, sampling=sampling), answer)
    assert reached.wait(10)
    for _ in range(3):
        ticket.cancel()
    go_on.set()
    answer.wait()
    assert answer.end.reason is FinishReason.CANCELLED
    assert len(answer.deltas) <= 2
    assert sum(isinstance(event, Ended | Failed) for event in answer.events) == 1


def test_an_answer_continued_from_its_tokens_is_the_same_answer(engine: Engine):
    picture = Image(data=sample_pictures()[0].read_bytes())
    prompt = Conversation((Turn(Role.USER, (picture, "Describe the picture.")),))
    sampling = Sampling(max_new_tokens=16, temperature=0.8, seed=11)
    whole = submit(engine, prompt, sampling).wait()
    for cut in (1, 5, len(whole.token_ids) - 1):
        rest = submit(engine, prompt, sampling, emitted=whole.token_ids[:cut]).wait()
        assert rest.token_ids == whole.token_ids[cut:]
        assert rest.deltas[-1].end_offset == len(whole.token_ids)
        assert whole.text.endswith(rest.text)
        assert rest.end.reason is whole.end.reason


def test_answers_depend_on_the_picture_and_the_seed(engine: Engine):
    def text(picture: int, seed: int) -> str:
        image = Image(data=sample_pictures()[picture].read_bytes())
        prompt = Conversation((Turn(Role.USER, (image, "Describe the picture.")),))
        return submit(engine, prompt, Sampling(max_new_tokens=24, temperature=2.0, seed=seed)).wait().text

    assert text(0, 1) == text(0, 1)
    assert len({text(0, 1), text(1, 1), text(0, 2)}) == 3


def test_many_threads_may_submit_at_once(engine: Engine):
    alone = [submit(engine, RawPrompt(f"prompt {n}"), Sampling(max_new_tokens=8)).wait().token_ids for n in range(12)]
    with ThreadPoolExecutor(6) as pool:
        together = pool.map(
            lambda n: submit(engine, RawPrompt(f"prompt {n}"), Sampling(max_new_tokens=8)).wait().token_ids, range(12)
        )
        assert list(together) == alone


@pytest.mark.parametrize(
    ("prompt", "sampling", "error"),
    [
        (PROMPT, Sampling(max_new_tokens=1_000_000), SamplingInvalidError),
        (RawPrompt("word " * 100_000), Sampling(), PromptTooLongError),
    ],
)
def test_what_is_wrong_is_raised_from_submit_and_the_next_request_succeeds(
    engine: Engine, prompt: RawPrompt, sampling: Sampling, error: type[LlavaGrpcError]
):
    with pytest.raises(error):
        submit(engine, prompt, sampling)
    assert submit(engine, PROMPT, Sampling(max_new_tokens=2)).wait().token_ids
    assert engine.stats().running == 0


def test_stop_strings_end_the_answer_before_them(engine: Engine):
    whole = submit(engine, PROMPT, Sampling(max_new_tokens=40)).wait().text
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    answer = submit(engine, PROMPT, Sampling(max_new_tokens=40, stop=(stop,))).wait()
    assert answer.text == whole[: whole.index(stop)]
    assert (answer.end.reason, answer.end.stop_sequence) == (FinishReason.STOP, stop)


def test_an_engine_closed_with_work_ends_it_as_cancelled():
    for name, settings in ENGINES.values():
        engine = load_engine(name, settings)
        engine.start(lambda what: None)
        answers = [submit(engine, PROMPT, Sampling(max_new_tokens=400)) for _ in range(4)]
        engine.close()
        assert {answer.wait().end.reason for answer in answers} <= {FinishReason.CANCELLED, FinishReason.STOP}


def test_unknown_engines_and_options_are_refused_in_words():
    with pytest.raises(EngineStartError, match="installed are: echo, transformers"):
        load_engine("nonsense", EngineSettings())
    for name, _ in ENGINES.values():
        with pytest.raises(EngineStartError, match="no option"):
            load_engine(name, EngineSettings(options={"nonsense": "1"}))
