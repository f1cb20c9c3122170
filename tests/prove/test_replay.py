"""Exact resume, at length: 200 random requests an engine, each with and without stop strings, cut again and again."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from llava_grpc.config import EngineSettings
from llava_grpc.core.prompt import Image
from llava_grpc.demo import sample_pictures
from llava_grpc.engines.base import Engine, load_engine
from llava_grpc.testing.checkpoints import NEXT, OTHER, build_checkpoint
from tests.support.replay import check_replays, kinds_of_end

REQUESTS = 200
AT_ONCE = 20
PICTURES = [Image(data=path.read_bytes()) for path in sample_pictures()]


@pytest.fixture(scope="module", params=["demo", "random", "next"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path: Path | str = ""
    if request.param != "demo":
        geometry = {"random": OTHER, "next": NEXT}[request.param]
        path = build_checkpoint(tmp_path_factory.mktemp("checkpoint"), geometry)
    settings = EngineSettings(model_path=str(path), threads=1, speed=1.0, image_cache_bytes=2**24, slots=AT_ONCE)
    engine = load_engine("transformers", settings)
    engine.start(lambda what: None)
    yield engine
    engine.close()


@pytest.mark.prove
@pytest.mark.timeout(1200)
def test_two_hundred_requests_go_on_from_their_log_as_if_never_cut(engine: Engine):
    replays, kinds = 0, set()
    for first in range(0, REQUESTS, AT_ONCE):
        compared, wholes = check_replays(engine, range(first, first + AT_ONCE), PICTURES, cuts=6, longest=40)
        replays += compared
        kinds |= kinds_of_end(wholes)
    print(f"{replays} continuations of {2 * REQUESTS} answers identical")
    assert replays > 4 * REQUESTS
    assert kinds == {"stop", "length", "stop string", "held back", "tokens of the stop string undelivered"}
