"""The Python client, both faces, against an in-process fabric over real gRPC."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import PIL.Image
import pytest

from llava_grpc import AsyncClient, Client, errors
from llava_grpc.client import assistant, by_digest, system, user
from llava_grpc.client.pictures import digest_of
from llava_grpc.core.states import WorkerState
from llava_grpc.core.stream import FinishReason
from llava_grpc.testing.cluster import Cluster
from llava_grpc.v1 import inference_pb2_grpc
from tests.support.waiting import until

SLOW = {"token_interval_ms": "100", "tokens": "100000"}  # the default of 256 tokens takes longer than any wait here
SECONDS = 20.0


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster(workers=2, options={"tokens": "12"}) as running:
        yield running


@pytest.fixture
async def endless() -> AsyncIterator[Cluster]:
    """One worker whose answers do not end by themselves in a test's time."""
    async with Cluster(workers=1, options=SLOW) as running:
        yield running


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(cluster.address, timeout=SECONDS) as ready:
        yield ready


def idle(cluster: Cluster) -> Callable[[], bool]:
    """Whether no slot is taken, at the workers and in the controller's books."""
    return lambda: (
        all(worker.host.running == 0 for worker in cluster.workers)
        and all(worker.in_flight == 0 for worker in cluster.controller.registry.workers())
    )


async def elsewhere(work: Callable[[], Any]) -> Any:
    """Blocking work in a thread, while this loop serves."""
    async with asyncio.timeout(SECONDS):
        return await asyncio.to_thread(work)


# ------------------------------------------------------------------------------------------------------------ the fleet


async def test_models_with_the_number_of_their_workers(client: AsyncClient):
    (model,) = await client.models()
    assert (model.name, model.workers, model.card.sees_images) == ("echo", 2, True)


async def test_workers_with_their_state(cluster: Cluster, client: AsyncClient):
    workers = await client.workers()
    assert [worker.address for worker in workers] == sorted(worker.address for worker in cluster.workers)
    assert {worker.state for worker in workers} == {WorkerState.ALIVE}
    assert {worker.models for worker in workers} == {("echo",)}
    assert all(worker.registered_at.tzinfo is not None for worker in workers)


async def test_a_worker_can_be_asked_itself(cluster: Cluster):
    async with AsyncClient(cluster.workers[0].address, timeout=SECONDS) as client:
        assert [model.workers for model in await client.models()] == [1]
        assert await client.ask("hi")
        with pytest.raises(errors.ProtocolVersionError, match="does not know the call"):
            await client.workers()


# -------------------------------------------------------------------------------------------------------------- answers


async def test_an_answer_streams_and_says_what_it_took(client: AsyncClient):
    stream = client.generate("hi", request_id="mine", seed=7, max_new_tokens=5)
    deltas = [delta async for delta in stream]
    assert "".join(delta.text for delta in deltas) == stream.text_so_far == await stream.text()
    assert deltas[-1].end_offset == len(stream.token_ids) == 5
    assert stream.started is not None
    assert (stream.request_id, stream.started.request_id, stream.started.seed) == ("mine", "mine", 7)
    assert stream.finished is not None
    assert stream.finished.reason is FinishReason.LENGTH
    assert stream.finished.usage.completion_tokens == 5


async def test_log_probabilities_come_with_their_tokens(client: AsyncClient):
    stream = client.generate("hi", seed=7, max_new_tokens=5, logprobs=2, stop="\x00")
    deltas = [delta async for delta in stream]
    assert [entry.token_id for entry in stream.logprobs] == list(stream.token_ids)
    assert all(len(delta.logprobs) == len(delta.token_ids) for delta in deltas)
    assert {len(entry.top) for entry in stream.logprobs} == {2}
    assert b"".join(entry.utf8 for entry in stream.logprobs).decode() == stream.text_so_far
    silent = client.generate("hi", seed=7, max_new_tokens=5)
    assert await silent.text() == stream.text_so_far
    assert silent.logprobs == ()


async def test_every_option_reaches_the_engine(client: AsyncClient):
    options: list[dict[str, Any]] = [
        {},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"top_k": 5},
        {"min_p": 0.1},
        {"repetition_penalty": 1.5},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"logit_bias": {7: 1.0, 3: 0.5}},
    ]
    assert len({await client.ask("hi", seed=7, **one) for one in options}) == len(options)
    longest = client.generate("hi", min_new_tokens=20)
    await longest.text()
    assert len(longest.token_ids) == 20
    endless = client.generate("hi", ignore_eos=True, max_new_tokens=30)
    await endless.text()
    assert len(endless.token_ids) == 30


async def test_requests_run_at_the_same_time(client: AsyncClient):
    streams = [client.generate(f"question {number}") for number in range(8)]
    texts = await asyncio.gather(*(stream.text() for stream in streams))
    assert len(set(texts)) == 8


async def test_the_first_frame_comes_before_the_answer_is_complete(endless: Cluster):
    async with AsyncClient(endless.address) as client, asyncio.timeout(SECONDS):
        async for _ in client.generate("hi"):
            break


async def test_pictures_by_path_bytes_pil_and_digest_are_the_same_picture(client: AsyncClient, tmp_path: Path):
    image = PIL.Image.new("RGB", (4, 4), "blue")
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    path = tmp_path / "blue.png"
    path.write_bytes(buffer.getvalue())
    forms = [path, str(path), buffer.getvalue(), image, by_digest(digest_of(path))]
    answers = {await client.ask("what?", form, seed=1) for form in forms}
    assert len(answers) == 1
    assert await client.ask("what?", b"another", seed=1) not in answers


async def test_a_conversation_as_turns(client: AsyncClient):
    turns = [system("be brief"), user("what?", b"picture"), assistant("a cat"), user("which colour?")]
    answer = await client.ask(turns, seed=1)
    assert answer == await client.ask(turns[1:], system="be brief", seed=1)
    assert answer != await client.ask(turns[1:], seed=1)


async def test_a_chat_remembers_complete_answers_only(client: AsyncClient):
    chat = client.chat(system="be brief", seed=1, max_new_tokens=4)
    first = await chat.say("what?", b"picture").text()
    async with chat.say("never mind"):
        pass
    with pytest.raises(errors.SamplingInvalidError):
        chat.say("hot", temperature=-1)
    second = await chat.say("and now?").text()
    told = [system("be brief"), user("what?", b"picture"), assistant(first), user("and now?")]
    assert chat.turns == [*told, assistant(second)]
    assert second == await client.ask(told, seed=1, max_new_tokens=4)


async def test_a_raw_prompt(client: AsyncClient):
    assert await client.generate(raw="USER: <image> what?", images=b"picture").text()


# -------------------------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize("way", ["break", "cancel", "context", "close", "task", "forget"])
async def test_leaving_an_answer_early_frees_its_slot(endless: Cluster, way: str):
    async with AsyncClient(endless.address) as client, asyncio.timeout(SECONDS):
        stream = client.generate("hi")
        assert await stream.next_delta() is not None
        assert not idle(endless)()
        match way:
            case "break":
                async for _ in stream:
                    break
            case "cancel":
                await stream.cancel()
            case "context":
                async with stream:
                    pass
            case "close":
                await client.close()
            case "task":
                reading = asyncio.create_task(stream.text())
                await asyncio.sleep(0)
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
            case "forget":
                del stream
                gc.collect()
        await until(idle(endless))
        if way != "forget":
            with pytest.raises(errors.RequestCancelledError):
                await stream.text()


async def test_whoever_reads_while_another_cancels_is_told(endless: Cluster):
    async with AsyncClient(endless.address) as client, asyncio.timeout(SECONDS):
        stream = client.generate("hi")
        await stream.next_delta()
        reading = asyncio.create_task(stream.text())
        await asyncio.sleep(0)
        await stream.cancel()
        with pytest.raises(errors.RequestCancelledError):
            await reading


async def test_the_deadline_is_an_error_of_its_own_and_frees_the_slot(endless: Cluster):
    async with AsyncClient(endless.address, timeout=0.2) as client:
        with pytest.raises(errors.DeadlineExceededError):
            await client.ask("hi")
        with pytest.raises(errors.DeadlineExceededError):
            await client.ask("hi", timeout=0.1)
    await until(idle(endless))


async def test_a_closed_client_says_so(client: AsyncClient):
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await client.models()
    with pytest.raises(RuntimeError, match="closed"):
        client.generate("hi")


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"model": "nobody's"}, errors.ModelNotFoundError),
        ({"request_id": "with space"}, errors.RequestIdInvalidError),
        ({"max_new_tokens": 100_000}, errors.SamplingInvalidError),
        ({"max_new_tokens": 2**40}, errors.SamplingInvalidError),
        ({"stop_token_ids": [-1]}, errors.SamplingInvalidError),
    ],
)
async def test_errors_are_of_the_class_that_was_raised(
    client: AsyncClient, options: dict[str, Any], error: type[errors.LlavaGrpcError]
):
    with pytest.raises(error) as caught:
        await client.ask("hi", **options)
    assert type(caught.value) is error
    assert caught.value.remedy


async def test_no_worker_is_an_error_that_can_be_tried_again():
    async with Cluster(workers=0) as cluster, AsyncClient(cluster.address, timeout=SECONDS) as client:
        with pytest.raises(errors.NoLiveWorkerError) as caught:
            await client.ask("hi")
        assert caught.value.retryable
        assert await client.models() == []
        assert await client.workers() == []


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host.invalid:1"])
async def test_nobody_there_is_told_at_once_with_the_address(address: str):
    async with AsyncClient(address) as client, asyncio.timeout(5):
        for call in (client.models(), client.workers(), client.ask("hi")):
            with pytest.raises(errors.ServerUnreachableError, match=address) as caught:
                await call
            assert "llava-grpc up" in caught.value.remedy


async def test_a_message_over_the_clients_limit_is_not_sent(cluster: Cluster):
    async with AsyncClient(cluster.address, max_message_bytes=2000) as client:
        with pytest.raises(errors.MessageTooLargeError, match="this client's limit of 2,000"):
            client.generate("hi", bytes(2000))


async def test_a_message_over_the_servers_limit_is_the_same_error():
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 2000)])
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(
        inference_pb2_grpc.InferenceServiceServicer(),  # type: ignore[abstract]
        server,
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncClient(f"127.0.0.1:{port}", timeout=SECONDS) as client:
        with pytest.raises(errors.MessageTooLargeError):
            await client.ask("hi", bytes(5000))
    await server.stop(0)


# ------------------------------------------------------------------------------------------------------ without asyncio


async def test_the_twin_streams(cluster: Cluster):
    def work() -> None:
        with Client(cluster.address, timeout=SECONDS) as client:
            assert [model.name for model in client.models()] == ["echo"]
            assert len(client.workers()) == 2
            answer = client.generate("hi", seed=1, request_id="mine")
            deltas = list(answer)
            assert "".join(delta.text for delta in deltas) == answer.text() == client.ask("hi", seed=1)
            assert (answer.request_id, len(answer.token_ids), answer.done) == ("mine", 12, True)
            assert answer.started is not None
            assert answer.finished is not None
            assert list(answer) == []
        assert answer.text(), "also after the client was closed"

    await elsewhere(work)


async def test_the_twin_chats_and_shows_pictures(cluster: Cluster, tmp_path: Path):
    path = tmp_path / "picture.png"
    PIL.Image.new("RGB", (4, 4), "blue").save(path)

    def work() -> None:
        with Client(cluster.address, timeout=SECONDS) as client:
            chat = client.chat(system="be brief")
            first = chat.say("what?", path).text()
            second = chat.say("and now?").text()
            assert chat.turns[2:] == [assistant(first), user("and now?"), assistant(second)]
            assert client.ask("what?", path, seed=1) == client.ask("what?", path.read_bytes(), seed=1)

    await elsewhere(work)


@pytest.mark.parametrize("way", ["break", "cancel", "context", "close", "forget"])
async def test_the_twin_frees_the_slot_of_what_it_leaves(endless: Cluster, way: str):
    def work() -> None:
        client = Client(endless.address)
        answer = client.generate("hi")
        iterator = iter(answer)
        next(iterator)
        match way:
            case "break":
                iterator.close()  # type: ignore[attr-defined]
            case "cancel":
                answer.cancel()
            case "context":
                with answer:
                    pass
            case "close":
                client.close()
            case "forget":
                del answer, iterator, client
                gc.collect()

    await elsewhere(work)
    await until(idle(endless))


@pytest.mark.parametrize("by", ["cancel", "close"])
async def test_the_twin_can_be_stopped_from_another_thread(endless: Cluster, by: str):
    def work() -> None:
        client = Client(endless.address)
        answer = client.generate("hi")
        iterator = iter(answer)
        next(iterator)
        stopper = threading.Thread(target=answer.cancel if by == "cancel" else client.close)
        stopper.start()
        with pytest.raises((errors.RequestCancelledError, RuntimeError)):
            for _ in iterator:
                pass
        stopper.join(SECONDS)
        client.close()

    await elsewhere(work)


async def test_the_twin_raises_the_same_errors(cluster: Cluster):
    def work() -> None:
        with Client("127.0.0.1:1") as nobody, pytest.raises(errors.ServerUnreachableError):
            nobody.models()
        with Client(cluster.address, timeout=SECONDS, max_message_bytes=2000) as client:
            with pytest.raises(errors.ModelNotFoundError):
                client.ask("hi", model="nobody's")
            with pytest.raises(errors.MessageTooLargeError):
                client.generate("hi", bytes(2000))
            with pytest.raises(errors.ImageInvalidError):
                client.generate("hi", "missing.png")
        with pytest.raises(RuntimeError, match="closed"):
            client.models()
        client.close()  # a second time is nothing

    await elsewhere(work)


async def test_the_twin_keeps_the_deadline(endless: Cluster):
    def work() -> None:
        with Client(endless.address, timeout=0.2) as client, pytest.raises(errors.DeadlineExceededError):
            client.ask("hi")

    await elsewhere(work)


async def test_events_left_early_free_the_slot(endless: Cluster):
    async with AsyncClient(endless.address) as client, aclosing(client.generate("hi").events()) as events:
        async for _ in events:
            break
    await until(idle(endless))
