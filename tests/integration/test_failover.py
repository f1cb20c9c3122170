"""Clients of several addresses: whatever breaks between client and server, the answer is the same, once."""

import asyncio
import contextlib
import gc
import random
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from llava_grpc import AsyncClient, Client, errors
from llava_grpc.client import AnswerStream
from llava_grpc.client.failover import ATTEMPTS
from llava_grpc.config import ControllerSettings, ServerSettings
from llava_grpc.controller.app import ControllerNode
from llava_grpc.core.stream import Started
from llava_grpc.rpc.channels import open_channel
from llava_grpc.testing.cluster import Cluster
from llava_grpc.v1 import inference_pb2 as pb
from llava_grpc.worker.app import WorkerNode
from tests.support.chance import Brisk, Endless, Hasty
from tests.support.fake_worker import Behaviour, FakeWorker, declines, dies_at_once, fake_worker
from tests.support.halfway import dies, ends, hangs, passes_on, says_cancelled, stops
from tests.support.waiting import until
from tests.support.wire import connected

SECONDS = 20.0
NOBODY = ("127.0.0.1:1", "127.0.0.1:2")
TOKENS = 24
HANGS_AFTER = 9
HEADERS, RST_STREAM, SETTINGS = 1, 3, 4
"""Kinds of HTTP/2 frames."""
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "top_p": 0.9, "frequency_penalty": 0.5, "seed": 5},
    "seed drawn by the server": {"temperature": 0.8},
    "log-probabilities": {"logprobs": 2, "stop": "\x00"},
    "picture": {"images": b"a picture", "seed": 3},
}


async def hard_stop(node: ControllerNode | WorkerNode) -> None:
    """Its connections break and its port is closed, as if it were killed."""
    assert node._node is not None
    await node._node.server.stop(0)


def ask(client: AsyncClient, options: dict[str, Any]) -> AnswerStream:
    return client.generate("hello", **{"max_new_tokens": TOKENS, "timeout": SECONDS, **options})


async def read_until(stream: AnswerStream, tokens: int) -> None:
    while len(stream.token_ids) < tokens:
        assert await stream.next_delta() is not None


def whole(stream: AnswerStream) -> tuple[Any, ...]:
    """All that a reader has of a complete answer, but who gave it and how fast."""
    assert stream.finished is not None
    finished = stream.finished
    return (
        stream.text_so_far,
        stream.token_ids,
        stream.logprobs,
        finished.reason,
        finished.usage,
        finished.stop_sequence,
    )


async def undisturbed(address: str, options: dict[str, Any], begun: Started | None) -> tuple[Any, ...]:
    """The same answer, had nothing happened."""
    async with AsyncClient(address) as client:
        stream = ask(client, {**options, "seed": begun.seed if begun else options.get("seed")})
        await stream.text()
        assert (stream.attempts, stream.resumed) == (1, 0)
        return whole(stream)


def idle(*clusters: Cluster) -> Callable[[], bool]:
    return lambda: all(worker.host.running == 0 for cluster in clusters for worker in cluster.workers)


@asynccontextmanager
async def two_fleets() -> AsyncIterator[tuple[Cluster, Cluster]]:
    """One whose worker stops making tokens in mid-answer, and one whose worker does not."""
    hanging = {"tokens": "1000", "hang_after": str(HANGS_AFTER)}
    async with Cluster(workers=1, options=hanging) as first, Cluster(workers=1, options={"tokens": "1000"}) as second:
        yield first, second


@asynccontextmanager
async def two_controllers(**options: str) -> AsyncIterator[tuple[Cluster, ControllerNode]]:
    """Over the same two workers."""
    async with Cluster(workers=0, options={"tokens": "1000", **options}) as cluster:
        second = ControllerNode(ControllerSettings(server=ServerSettings(port=0, grace=0)))
        await second.start()
        try:
            for _ in range(2):
                await cluster.add_worker(controllers=(cluster.address, second.address))
            yield cluster, second
        finally:
            await second.stop()


@asynccontextmanager
async def halfway(
    then: Behaviour, deltas: int = 3, fingerprint: pb.Fingerprint | None = None
) -> AsyncIterator[tuple[FakeWorker, WorkerNode]]:
    """A worker that answers so many frames as a real one would and then does something else; and the real one."""
    async with Cluster(workers=1, options={"tokens": "1000", "token_interval_ms": "1"}) as cluster:
        [worker] = cluster.workers
        async with connected(worker.address) as real:
            async with fake_worker(passes_on(real.inference, deltas, then, fingerprint)) as failing:
                yield failing, worker
                await until(idle(cluster))


@asynccontextmanager
async def resetting(code: int) -> AsyncIterator[str]:
    """Address of a server that resets every stream with that error code of HTTP/2, as load balancers do."""

    def frame(kind: int, stream: int, body: bytes = b"", flags: int = 0) -> bytes:
        return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body

    connections: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readexactly(24)  # the client's preface
            writer.write(frame(SETTINGS, 0))
            while True:
                head = await reader.readexactly(9)
                await reader.readexactly(int.from_bytes(head[:3], "big"))
                if head[3] == HEADERS:
                    writer.write(frame(RST_STREAM, int.from_bytes(head[5:], "big"), struct.pack(">I", code)))
                elif head[3] == SETTINGS and not head[4]:
                    writer.write(frame(SETTINGS, 0, flags=1))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield "{}:{}".format(*server.sockets[0].getsockname())
    finally:
        server.close()
        for writer in connections:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


# -------------------------------------------------------------------------------------------------- in mid-answer


@pytest.mark.parametrize("name", OPTIONS)
async def test_a_controller_dies_in_mid_answer_and_another_goes_on(name: str):
    async with two_fleets() as (first, second), AsyncClient([first.address, second.address]) as client:
        stream = ask(client, OPTIONS[name])
        await read_until(stream, HANGS_AFTER)
        await hard_stop(first.controller)
        events = [event async for event in stream.events()]
        assert whole(stream) == await undisturbed(second.address, OPTIONS[name], stream.started)
        assert {type(event).__name__ for event in events} == {"Delta", "Finished"}, "Started is not shown twice"
        assert (stream.attempts, stream.resumed) == (2, 1)
        assert stream.started is not None
        assert stream.answering is not None
        assert stream.started.worker_address == first.workers[0].address
        assert stream.answering.worker_address == second.workers[0].address
        assert (stream.started.seed, stream.answering.attempt) == (stream.answering.seed, 1)
        assert client.address == second.address
        assert [model.workers for model in await client.models()] == [1], "it stays with who answers"
        await until(idle(first, second))


async def test_a_cut_inside_a_stop_string_does_not_hide_it():
    async with two_fleets() as (first, second), AsyncClient([first.address, second.address]) as client:
        async with AsyncClient(second.address) as other:
            plain = ask(other, {"seed": 5, "logprobs": 0})
            await plain.text()
        texts = [entry.utf8.decode() for entry in plain.logprobs]
        held_back = HANGS_AFTER - 2
        stop = "".join(texts[held_back : HANGS_AFTER + 1])
        stream = ask(client, {"seed": 5, "stop": stop})
        await read_until(stream, held_back)
        await hard_stop(first.controller)
        assert await stream.text() == "".join(texts[:held_back])
        assert stream.resumed == 1
        assert stream.finished is not None
        assert (stream.finished.reason.value, stream.finished.stop_sequence) == ("stop", stop)


async def test_two_controllers_over_the_same_workers():
    async with two_controllers(token_interval_ms="20") as (cluster, second):
        async with AsyncClient(f"{cluster.address},{second.address}", timeout=SECONDS) as client:
            streams = [client.generate(f"question {number}", seed=number, max_new_tokens=60) for number in range(6)]
            await asyncio.gather(*(read_until(stream, 3) for stream in streams))
            await hard_stop(cluster.controller)
            texts = await asyncio.gather(*(stream.text() for stream in streams))
            assert [stream.resumed for stream in streams] == [1] * 6
            assert all(len(stream.token_ids) == 60 for stream in streams)
            again = [client.ask(f"question {number}", seed=number, max_new_tokens=60) for number in range(6)]
            assert texts == await asyncio.gather(*again)
            assert len(await client.workers()) == 2
        await until(idle(cluster))


@pytest.mark.parametrize("then", [dies, ends, stops, says_cancelled], ids=lambda how: how.__name__)
@pytest.mark.parametrize("deltas", [0, 1, 3])
async def test_a_worker_asked_directly_fails_and_another_goes_on(then: Behaviour, deltas: int):
    async with halfway(then, deltas) as (failing, worker):
        async with AsyncClient([failing.address, worker.address]) as client:
            stream = ask(client, {"temperature": 0.7})
            deltas_seen = [delta async for delta in stream]
            assert whole(stream) == await undisturbed(worker.address, {"temperature": 0.7}, stream.started)
            assert [delta.end_offset for delta in deltas_seen] == sorted({delta.end_offset for delta in deltas_seen})
            assert (stream.attempts, stream.resumed) == (2, int(deltas > 0))
            assert failing.calls == 1


async def test_a_cut_before_the_very_end_costs_only_the_end():
    async with halfway(dies) as (failing, worker), connected(worker.address) as real:

        async def all_but_the_end(request: pb.GenerateRequest, context: Any) -> None:
            async for frame in real.inference.Generate(request):
                if not frame.HasField("finished"):
                    await context.write(frame)
            await dies(request, context)

        failing.behaviour = all_but_the_end
        async with AsyncClient([failing.address, worker.address]) as client:
            stream = ask(client, {"logprobs": 1})
            await stream.text()
            assert (stream.attempts, stream.resumed) == (2, 1)
            assert whole(stream) == await undisturbed(worker.address, {"logprobs": 1}, stream.started)


async def test_a_worker_that_was_killed_cuts_all_its_streams_and_all_go_on():
    options = {"tokens": "1000", "token_interval_ms": "20"}
    async with Cluster(workers=2, options=options) as cluster:
        first, second = cluster.workers
        async with AsyncClient([first.address, second.address], timeout=SECONDS) as client:
            streams = [client.generate(f"question {number}", seed=number, max_new_tokens=50) for number in range(8)]
            await asyncio.gather(*(read_until(stream, 2) for stream in streams))
            await hard_stop(first)
            texts = await asyncio.gather(*(stream.text() for stream in streams))
            assert [stream.resumed for stream in streams] == [1] * 8
            again = [client.ask(f"question {number}", seed=number, max_new_tokens=50) for number in range(8)]
            assert texts == await asyncio.gather(*again)


async def test_at_the_only_address_a_broken_answer_is_resumed_too():
    async with halfway(dies) as (failing, worker):
        good = failing.behaviour

        async def once(request: pb.GenerateRequest, context: Any) -> None:
            if failing.calls > 1:
                async with connected(worker.address) as real:
                    return await passes_on(real.inference, TOKENS, dies)(request, context)
            return await good(request, context)

        failing.behaviour = once
        async with AsyncClient(failing.address, random=Hasty()) as client:
            stream = ask(client, {})
            await stream.text()
            assert (stream.attempts, stream.resumed) == (2, 1)
            assert whole(stream) == await undisturbed(worker.address, {}, stream.started)


async def test_the_only_controller_is_started_again_and_the_answer_goes_on():
    options = {"tokens": "1000", "token_interval_ms": "20"}
    async with Cluster(workers=1, options=options) as cluster:
        async with AsyncClient(cluster.address, attempts=1000, timeout=SECONDS, random=Brisk()) as client:
            stream = client.generate("hello", seed=1, max_new_tokens=50)
            await read_until(stream, 3)
            await cluster.controller.stop()
            port = int(cluster.address.rpartition(":")[2])
            again = ControllerNode(ControllerSettings(server=ServerSettings(port=port, grace=0)))
            await again.start()
            try:
                await stream.text()
                assert stream.resumed == 1
                assert whole(stream) == await undisturbed(
                    cluster.workers[0].address, {"seed": 1, "max_new_tokens": 50}, stream.started
                )
            finally:
                await again.stop()


async def test_an_answer_may_be_cut_ever_again_as_long_as_it_gets_on():
    seed = random.randrange(2**32)
    async with halfway(dies) as (failing, worker):
        async with connected(worker.address) as real:
            chance = random.Random(seed)

            async def a_few(request: pb.GenerateRequest, context: Any) -> None:
                await passes_on(real.inference, chance.randint(1, 4), dies)(request, context)

            failing.behaviour = a_few
            async with AsyncClient([failing.address, NOBODY[0]], random=Hasty()) as client:
                stream = ask(client, {"temperature": 1.0, "max_new_tokens": 60})
                await stream.text()
                assert stream.resumed == failing.calls - 1 > ATTEMPTS, f"seed {seed}"
                expected = await undisturbed(worker.address, {"temperature": 1.0, "max_new_tokens": 60}, stream.started)
                assert whole(stream) == expected, f"seed {seed}"


# ---------------------------------------------------------------------------------------------- before the first token


async def test_who_is_not_there_who_stops_and_who_is_full_leads_to_the_next():
    for first in (dies_at_once, stops, declines):
        async with fake_worker(first) as failing, Cluster(workers=1) as cluster:
            async with AsyncClient([failing.address, NOBODY[0], cluster.address], timeout=SECONDS) as client:
                stream = client.generate("hi")
                assert await stream.text()
                assert (stream.attempts, stream.resumed, failing.calls) == (3, 0, 1)
                assert client.address == cluster.address
                assert await client.ask("hi")
                assert failing.calls == 1


@pytest.mark.parametrize("code", [0, 2, 8])
async def test_a_stream_reset_on_the_way_leads_to_the_next(code: int):
    async with resetting(code) as address, Cluster(workers=1) as cluster:
        async with AsyncClient([address, cluster.address], timeout=SECONDS) as client:
            stream = client.generate("hi")
            assert await stream.text()
            assert (stream.attempts, client.address) == (2, cluster.address)
        async with AsyncClient(address, timeout=SECONDS) as client:
            with pytest.raises(errors.ServerUnreachableError, match="was cut"):
                await client.ask("hi")


async def test_a_full_server_is_an_error_where_there_is_no_other():
    async with fake_worker(declines) as busy, AsyncClient(busy.address, timeout=SECONDS) as client:
        with pytest.raises(errors.AllSlotsTakenError):
            await client.ask("hi")
        assert busy.calls == 1


async def test_a_controller_without_workers_leads_to_the_next():
    async with Cluster(workers=0) as empty, Cluster(workers=1) as cluster:
        async with AsyncClient([empty.address, cluster.address], timeout=SECONDS) as client:
            assert await client.ask("hi")


async def test_lists_are_asked_of_the_next_too():
    async with Cluster(workers=1) as cluster:
        async with AsyncClient([NOBODY[0], cluster.address], timeout=SECONDS) as client:
            assert [worker.address for worker in await client.workers()] == [cluster.workers[0].address]
            assert client.address == cluster.address
            assert [model.name for model in await client.models()] == ["echo"]


async def test_the_requests_own_fault_is_told_at_once():
    async with Cluster(workers=1) as cluster, fake_worker(dies_at_once) as other:
        async with AsyncClient([cluster.address, other.address], timeout=SECONDS) as client:
            with pytest.raises(errors.ModelNotFoundError):
                await client.ask("hi", model="nobody's")
            with pytest.raises(errors.SamplingInvalidError):
                await client.ask("hi", max_new_tokens=100_000)
            assert other.calls == 0


async def test_a_name_with_several_addresses_is_left_to_grpc():
    async with Cluster(workers=1) as cluster:
        port = cluster.address.rpartition(":")[2]
        async with AsyncClient(f"dns:///localhost:{port}", timeout=SECONDS) as client:
            assert await client.ask("hi")


# -------------------------------------------------------------------------------------------------------- nobody there


async def test_nobody_at_all_is_told_after_so_many_attempts():
    opened: list[str] = []

    def counting(address: str, max_message_bytes: int = 0) -> grpc.aio.Channel:
        opened.append(address)
        return open_channel(address)

    async with AsyncClient(NOBODY, random=Hasty(), open_channel=counting) as client, asyncio.timeout(SECONDS):
        stream = client.generate("hi")
        with pytest.raises(errors.ServerUnreachableError):
            await stream.text()
        assert stream.attempts == ATTEMPTS
        for call in (client.models(), client.workers()):
            with pytest.raises(errors.ServerUnreachableError):
                await call
        assert opened == list(NOBODY), "a channel each, kept"
    async with AsyncClient(NOBODY, attempts=5, random=Hasty()) as client:
        stream = client.generate("hi", timeout=SECONDS)
        with pytest.raises(errors.ServerUnreachableError):
            await stream.text()
        assert stream.attempts == 5


async def test_when_all_are_gone_for_good_what_came_can_still_be_read():
    async with halfway(dies) as (failing, _):
        async with AsyncClient([failing.address, *NOBODY], random=Hasty()) as client:
            stream = ask(client, {})
            await read_until(stream, 1)
            failing.behaviour = dies_at_once
            with pytest.raises(errors.ServerUnreachableError):
                await stream.text()
            assert len(stream.token_ids) >= 3
            assert len(stream.text_so_far.split()) >= 1
            assert stream.attempts == 1 + ATTEMPTS
            with pytest.raises(errors.ServerUnreachableError):
                await stream.text()


async def test_the_deadline_holds_over_attempts_and_pauses():
    async with AsyncClient(NOBODY, random=Endless()) as client, asyncio.timeout(SECONDS):
        for call in (client.models(timeout=0.2), client.ask("hi", timeout=0.2)):
            with pytest.raises(errors.DeadlineExceededError, match="deadline"):
                await call


async def test_the_deadline_holds_while_an_answer_is_resumed():
    async with halfway(dies) as (failing, _), fake_worker(hangs) as silent:
        async with AsyncClient([failing.address, silent.address], random=Endless()) as client:
            stream = ask(client, {"timeout": 2.0})
            with pytest.raises(errors.DeadlineExceededError):
                await stream.text()
            assert len(stream.token_ids) >= 3
            assert (stream.attempts, silent.calls) == (2, 1)


# ------------------------------------------------------------------------------------------------------------- leaving


@pytest.mark.parametrize("way", ["cancel", "break", "close", "task", "forget"])
async def test_leaving_in_a_pause_ends_everything(way: str):
    before = asyncio.all_tasks()
    client = AsyncClient(NOBODY, random=Endless())
    stream = client.generate("hi")
    reading = asyncio.create_task(stream.text())
    await until(lambda: stream.attempts == 2 and stream._call is None)
    match way:
        case "cancel":
            await stream.cancel()
        case "break":
            async with stream:
                pass
        case "close":
            await client.close()
        case "task" | "forget":
            reading.cancel()
    with pytest.raises(asyncio.CancelledError if way in ("task", "forget") else errors.RequestCancelledError):
        await reading
    assert stream.done
    if way == "forget":
        del stream
        gc.collect()
    else:
        with pytest.raises(errors.RequestCancelledError):
            await stream.text()
    await client.close()
    await until(lambda: asyncio.all_tasks() == before)


async def test_closing_the_client_ends_a_list_that_waits():
    client = AsyncClient(NOBODY, random=Endless())
    listing = asyncio.create_task(client.models())
    await until(lambda: len(client._route._channels) == 2)
    await client.close()
    with pytest.raises(errors.RequestCancelledError):
        await listing


@pytest.mark.parametrize("way", ["cancel", "close", "task"])
async def test_leaving_while_another_server_takes_over_reaches_it(way: str):
    cancelled = asyncio.Event()

    async def silent(request: pb.GenerateRequest, context: Any) -> None:
        try:
            await hangs(request, context)
        finally:
            cancelled.set()

    async with halfway(dies) as (failing, _), fake_worker(silent) as next_one:
        client = AsyncClient([failing.address, next_one.address])
        stream = ask(client, {})
        reading = asyncio.create_task(stream.text())
        await until(lambda: next_one.calls == 1)
        match way:
            case "cancel":
                await stream.cancel()
            case "close":
                await client.close()
            case "task":
                reading.cancel()
        with pytest.raises(asyncio.CancelledError if way == "task" else errors.RequestCancelledError):
            await reading
        async with asyncio.timeout(SECONDS):
            await cancelled.wait()
        await client.close()


async def test_pictures_are_kept_no_longer_than_the_stream():
    picture = random.Random(1).randbytes(10_000)
    async with halfway(dies) as (failing, worker), AsyncClient([failing.address, worker.address]) as client:
        gc.collect()
        before = sys.getrefcount(picture)
        complete = ask(client, {"images": picture})
        assert sys.getrefcount(picture) > before
        await complete.text()
        assert complete.resumed == 1
        gc.collect()
        assert sys.getrefcount(picture) == before
        left = ask(client, {"images": picture})
        await left.next_delta()
        await left.cancel()
        gc.collect()
        assert sys.getrefcount(picture) == before


# -------------------------------------------------------------------------------------------------------------- others


@pytest.mark.parametrize("part", ["weights", "tokenizer"])
async def test_an_answer_does_not_go_on_with_other_weights_or_tokens(part: str):
    async with halfway(dies) as (failing, worker), connected(worker.address) as real:
        others = pb.Fingerprint(**{"weights": "echo", "tokenizer": "echo", part: "others"})
        async with fake_worker(passes_on(real.inference, 99, dies, others)) as other:
            async with AsyncClient([failing.address, other.address]) as client:
                stream = ask(client, {})
                with pytest.raises(errors.ResumeFailedError) as caught:
                    await stream.text()
                assert caught.value.metadata["delivered_tokens"] == str(len(stream.token_ids))
                assert len(stream.token_ids) >= 3
                assert (stream.resumed, other.calls) == (0, 1)
            async with AsyncClient([failing.address, other.address, worker.address]) as client:
                stream = ask(client, {})
                await stream.text()
                assert whole(stream) == await undisturbed(worker.address, {}, stream.started)


async def test_an_answer_goes_on_under_another_type_of_number_without_a_gap_or_a_double():
    near = pb.Fingerprint(weights="echo", tokenizer="echo", dtype="bfloat16", engine="another")
    async with halfway(dies, fingerprint=near) as (failing, worker):
        async with AsyncClient([failing.address, worker.address]) as client:
            stream = ask(client, {})
            offsets = [delta.end_offset - len(delta.token_ids) async for delta in stream]
            assert offsets[0] == 0
            assert offsets == sorted(set(offsets))
            assert (len(stream.token_ids), stream.resumed) == (TOKENS, 1)


async def test_a_chat_remembers_a_resumed_answer_as_one():
    async with halfway(dies) as (failing, worker):
        async with AsyncClient([failing.address, worker.address], timeout=SECONDS) as client:
            chat = client.chat(max_new_tokens=TOKENS, seed=1)
            stream = chat.say("hello")
            text = await stream.text()
            assert stream.resumed == 1
            assert chat.turns[-1].parts == (text,)
            assert text == await client.ask("hello", max_new_tokens=TOKENS, seed=1)


async def test_the_twin_fails_over_and_resumes():
    async with AsyncExitStack() as stack:
        first, second = await stack.enter_async_context(two_fleets())
        loop = asyncio.get_running_loop()

        def work() -> None:
            with Client([first.address, second.address], timeout=SECONDS) as client:
                answer = client.generate("hello", max_new_tokens=TOKENS, temperature=0.8)
                text = ""
                for delta in answer:
                    text += delta.text
                    if delta.end_offset == HANGS_AFTER:
                        asyncio.run_coroutine_threadsafe(hard_stop(first.controller), loop).result(SECONDS)
                assert text == answer.text()
                assert (answer.attempts, answer.resumed) == (2, 1)
                assert answer.started is not None
                assert answer.answering is not None
                assert answer.answering.worker_address == second.workers[0].address
                assert client.address == second.address
                assert client.addresses == (first.address, second.address)
                assert text == client.ask("hello", max_new_tokens=TOKENS, temperature=0.8, seed=answer.started.seed)
            with Client(NOBODY, attempts=2, timeout=SECONDS) as client, pytest.raises(errors.ServerUnreachableError):
                client.ask("hi")

        async with asyncio.timeout(2 * SECONDS):
            await asyncio.to_thread(work)
