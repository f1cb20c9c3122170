"""The whole way, client side to GPU side: what comes out of the fabric is what `model.generate` says, to the token."""

import asyncio
import threading
from pathlib import Path

import grpc
import pytest

from llava_grpc import errors
from llava_grpc.config import EngineSettings
from llava_grpc.core.prompt import Conversation, GenerationRequest, Image, RawPrompt, Role, Sampling, Turn
from llava_grpc.demo import MODEL_NAME, MODEL_PATH, sample_pictures
from llava_grpc.engines.base import Engine
from llava_grpc.rpc.convert import request_to_pb
from llava_grpc.rpc.status import from_rpc_error
from llava_grpc.testing.checkpoints import OTHER, build_checkpoint
from llava_grpc.testing.cluster import Cluster
from llava_grpc.testing.reference import Reference
from llava_grpc.v1 import inference_pb2
from tests.support.pictures import bomb_png, mp4, png, truncated_png
from tests.support.waiting import until
from tests.support.wire import answer_to, ask, connected

TOKENS = 24


def prompts() -> list[Conversation | RawPrompt]:
    """Sixteen: pictures in turn, two at once, none, raw, several turns."""
    pictures = [Image(data=path.read_bytes()) for path in sample_pictures()]
    ask = [
        Conversation((Turn(Role.USER, (picture, question)),))
        for picture in pictures[:4]
        for question in ("Describe the picture.", "How many shapes are there?", "What is at the top left?")
    ]
    return [
        *ask,
        Conversation((Turn(Role.USER, ("Hello!",)),)),
        Conversation((Turn(Role.USER, (pictures[0], pictures[1], "Describe both.")),)),
        RawPrompt("USER: <image>\nWhat colour is it? ASSISTANT:", (pictures[2],)),
        Conversation(
            (
                Turn(Role.USER, (pictures[3], "Describe the picture.")),
                Turn(Role.ASSISTANT, ("There is a shape.",)),
                Turn(Role.USER, ("Where is it?",)),
            )
        ),
    ]


@pytest.fixture(scope="module", params=["demo", "other"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "demo":
        return MODEL_PATH
    return build_checkpoint(tmp_path_factory.mktemp("other"), OTHER)


def serving(checkpoint: Path, workers: int) -> Cluster:
    settings = EngineSettings(
        model_path=str(checkpoint), model_name="m", threads=1, speed=1.0, image_cache_bytes=2**22, context_tokens=512
    )
    return Cluster(workers=workers, engine="transformers", engine_settings=settings)


async def test_sixteen_at_once_through_controller_and_two_workers_say_what_generate_says(checkpoint: Path):
    everything = prompts()
    assert len(everything) == 16
    reference = Reference(checkpoint)
    expected = await asyncio.to_thread(lambda: [reference.answer(prompt, TOKENS) for prompt in everything])
    async with serving(checkpoint, workers=2) as cluster, connected(cluster.address) as controller:
        answers = await asyncio.gather(
            *(answer_to(controller.inference, request_for(prompt), timeout=60) for prompt in everything)
        )
        served_by = {answer.started.worker_address for answer in answers}
    for prompt, answer, (token_ids, text) in zip(everything, answers, expected, strict=True):
        assert (answer.token_ids, answer.text) == (token_ids, text), prompt
    assert len(served_by) == 2


def request_for(prompt: Conversation | RawPrompt, **sampling: object) -> inference_pb2.GenerateRequest:
    options = Sampling(**{"max_new_tokens": TOKENS, **sampling})  # type: ignore[arg-type]
    return request_to_pb(GenerationRequest(request_id="", model="", prompt=prompt, sampling=options))


async def test_health_goes_on_answering_while_the_engine_computes():
    async with serving(MODEL_PATH, workers=1) as cluster, connected(cluster.workers[0].address) as worker:
        engine = cluster.workers[0].host.engine
        held, go_on = hold_the_engine(engine)
        call = worker.inference.Generate(request_for(prompts()[0]))
        await asyncio.to_thread(held.wait, 10)
        for _ in range(3):  # the engine's thread is inside a step that does not end
            listed = await worker.inference.ListModels(inference_pb2.ListModelsRequest(), timeout=5)
            assert [model.name for model in listed.models] == ["m"]
        go_on.set()
        frames = [frame async for frame in call]
        assert frames[-1].HasField("finished")


async def test_a_client_that_goes_away_stops_the_decoding():
    async with serving(MODEL_PATH, workers=1) as cluster, connected(cluster.address) as controller:
        engine = cluster.workers[0].host.engine
        held, go_on = hold_the_engine(engine)
        call = controller.inference.Generate(request_for(prompts()[0], max_new_tokens=300, stop=()))
        await asyncio.to_thread(held.wait, 10)
        before = engine.stats().tokens_generated
        call.cancel()
        running = engine._loop._running  # type: ignore[attr-defined]
        await until(lambda: all(sequence.cancelled for sequence in running.values()))
        go_on.set()
        await until(lambda: cluster.workers[0].host.running == 0)
        assert engine.stats().running == 0
        assert engine.stats().tokens_generated <= before + 1, "the step under way, and none more"


def hold_the_engine(engine: Engine) -> tuple[threading.Event, threading.Event]:
    """Makes the engine's next step wait inside the step. Events: it is held; let it go on."""
    held, go_on = threading.Event(), threading.Event()
    decoder = engine._loop._decoder  # type: ignore[attr-defined]
    step = decoder.step

    def slow_step() -> object:
        if not go_on.is_set():
            held.set()
            assert go_on.wait(20)
        return step()

    decoder.step = slow_step
    return held, go_on


def user(*parts: inference_pb2.Part, role: int = inference_pb2.ROLE_USER) -> inference_pb2.GenerateRequest:
    turn = inference_pb2.Turn(role=role, parts=parts)  # type: ignore[arg-type]
    return inference_pb2.GenerateRequest(conversation=inference_pb2.Conversation(turns=[turn]))


def picture(data: bytes) -> inference_pb2.Part:
    return inference_pb2.Part(image=inference_pb2.Image(data=data))


TEXT = inference_pb2.Part(text="What is it?")
ONE = inference_pb2.Image(data=png())
BAD = {
    "not a picture": (user(picture(b"hello"), TEXT), errors.ImageInvalidError),
    "truncated": (user(picture(truncated_png()), TEXT), errors.ImageInvalidError),
    "bomb": (user(picture(bomb_png()), TEXT), errors.ImageTooLargeError),
    "video": (user(picture(mp4()), TEXT), errors.ImageInvalidError),
    "digest not held": (
        user(inference_pb2.Part(image=inference_pb2.Image(sha256=b"x" * 32)), TEXT),
        errors.ImageNotFoundError,
    ),
    "uri": (
        user(inference_pb2.Part(image=inference_pb2.Image(uri="file:///etc/passwd")), TEXT),
        errors.ImageUriDisabledError,
    ),
    "too few pictures": (
        inference_pb2.GenerateRequest(raw=inference_pb2.RawPrompt(text="<image><image>", images=[ONE])),
        errors.ImageCountError,
    ),
    "too many pictures": (user(*[picture(png())] * 17, TEXT), errors.ImageCountError),
    "no turns": (inference_pb2.GenerateRequest(conversation=inference_pb2.Conversation()), errors.PromptInvalidError),
    "no prompt": (inference_pb2.GenerateRequest(), errors.PromptInvalidError),
    "unknown role": (user(TEXT, role=7), errors.PromptInvalidError),
    "negative temperature": (ask(temperature=-1.0), errors.SamplingInvalidError),
    "temperature is no number": (ask(temperature=float("nan")), errors.SamplingInvalidError),
    "a hundred thousand tokens": (ask("word " * 100_000), errors.PromptTooLongError),
    "too long an answer": (ask(max_new_tokens=5_000), errors.SamplingInvalidError),
    "stop token beyond the vocabulary": (ask(stop_token_ids=[4_000_000]), errors.SamplingInvalidError),
}


async def test_bad_input_is_told_what_is_wrong_and_the_next_request_succeeds():
    async with serving(MODEL_PATH, workers=1) as cluster, connected(cluster.address) as controller:
        for name, (request, expected) in BAD.items():
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await answer_to(controller.inference, request)
            error = from_rpc_error(caught.value)
            assert type(error) is expected, name
            assert error.remedy, name
            good = await answer_to(controller.inference, request_for(prompts()[0], max_new_tokens=2))
            assert good.token_ids, name
        assert cluster.workers[0].host.running == 0


async def test_special_tokens_typed_by_a_person_are_text():
    async with serving(MODEL_PATH, workers=1) as cluster, connected(cluster.address) as controller:
        typed = await answer_to(controller.inference, ask("What is <image> or </s> or <s>?", max_new_tokens=2))
        assert typed.finished.usage.image_tokens == 0
        assert typed.finished.usage.prompt_tokens > len("<image></s><s>") // 2, "spelled out, not one token each"


async def test_the_model_is_listed_under_its_name():
    settings = EngineSettings(threads=1, speed=1.0, image_cache_bytes=2**22)
    async with Cluster(workers=1, engine="transformers", engine_settings=settings) as cluster:
        async with connected(cluster.address) as controller:
            listed = await controller.inference.ListModels(inference_pb2.ListModelsRequest())
    assert [(model.name, model.sees_images) for model in listed.models] == [(MODEL_NAME, True)]
    assert listed.models[0].fingerprint.weights
