"""An answer continued from its token log is the same answer, on every engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from llava_grpc.config import EngineSettings
from llava_grpc.core.prompt import Image, RawPrompt, Sampling
from llava_grpc.demo import sample_pictures
from llava_grpc.engines.base import Engine, load_engine
from llava_grpc.errors import LlavaGrpcError, SamplingInvalidError
from llava_grpc.testing.checkpoints import OTHER, build_checkpoint
from llava_grpc.testing.reference import submit
from tests.support.replay import check_replays, kinds_of_end

PICTURES = [Image(data=path.read_bytes()) for path in sample_pictures()[:4]]


@pytest.fixture(scope="module", params=["echo", "demo", "random"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path: Path | str = ""
    if request.param == "random":  # its answers are bytes at random: half characters, and no end by itself
        path = build_checkpoint(tmp_path_factory.mktemp("checkpoint"), OTHER)
    echo = request.param == "echo"
    settings = EngineSettings(
        model_path=str(path),
        threads=1,
        speed=1.0,
        image_cache_bytes=2**22,
        slots=64,
        options={"tokens": "12"} if echo else {},
    )
    engine = load_engine("echo" if echo else "transformers", settings)
    engine.start(lambda what: None)
    yield engine
    engine.close()


def test_answers_go_on_from_their_log_as_if_never_cut(engine: Engine):
    _, wholes = check_replays(engine, range(10), PICTURES, cuts=3)
    assert {"stop", "length", "stop string", "held back"} <= kinds_of_end(wholes), "the requests drawn say too little"


PROMPT = RawPrompt("Once upon a time")


@pytest.mark.parametrize(
    ("emitted", "options", "says"),
    [
        ((1,) * 9, {"max_new_tokens": 8}, "9 tokens were emitted, and the answer has 8 at most"),
        ((1,) * 300, {}, "300 tokens were emitted, and the answer has 256 at most"),
        ((70_000,), {}, "the emitted token 70000 is none of the model's"),
        ((5, 6, 7), {"stop_token_ids": (6,)}, "contain 6, which ends an answer"),
    ],
)
def test_a_log_that_cannot_be_the_requests_own_is_refused(engine: Engine, emitted, options, says):
    with pytest.raises(SamplingInvalidError, match=says) as caught:
        submit(engine, PROMPT, Sampling(**options), emitted=emitted)
    assert caught.value.remedy
    assert engine.stats().waiting == engine.stats().running == 0


def test_a_log_that_goes_on_after_a_stop_string_is_refused(engine: Engine):
    whole = submit(engine, PROMPT, Sampling(max_new_tokens=12)).wait()
    stop = next(delta.text for delta in whole.deltas if delta.text)
    with pytest.raises(SamplingInvalidError, match="go on after the stop string"):
        submit(engine, PROMPT, Sampling(max_new_tokens=12, stop=(stop,)), emitted=whole.token_ids)
    assert engine.stats().waiting == engine.stats().running == 0


def test_a_prompt_that_leaves_no_room_for_what_was_emitted_is_refused(engine: Engine):
    context = engine.card.context_tokens
    prompt = RawPrompt("x " * (context // 4))
    prompt_tokens = submit(engine, prompt, Sampling(max_new_tokens=1)).wait().end.usage.prompt_tokens
    beyond = [1] * (context - prompt_tokens + 1)
    with pytest.raises(LlavaGrpcError, match="tokens were emitted"):
        submit(engine, prompt, Sampling(), emitted=beyond)


def test_usage_counts_the_whole_answer_and_the_prompt_alone(engine: Engine):
    whole = submit(engine, PROMPT, Sampling(max_new_tokens=10)).wait()
    rest = submit(engine, PROMPT, Sampling(max_new_tokens=10), emitted=whole.token_ids[:1]).wait()
    assert rest.end.usage == whole.end.usage
