"""OpenAI's own SDK against a gateway in front of a real fleet."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from llava_grpc.client import AsyncClient
from llava_grpc.config import EngineSettings, GatewaySettings, SettingsError
from llava_grpc.gateway.app import GatewayNode
from llava_grpc.testing.cluster import Cluster
from tests.support.waiting import until

HELLO: Any = [{"role": "user", "content": "hello"}]


@asynccontextmanager
async def gateway(cluster: Cluster, **settings: Any) -> AsyncIterator[AsyncOpenAI]:
    """One before the cluster, with a client of it that tries nothing twice."""
    node = GatewayNode(GatewaySettings(port=0, controllers=(cluster.address,), **settings), grace=0)
    await node.start()
    try:
        async with AsyncOpenAI(base_url=f"{node.url}/v1", api_key="a key", max_retries=0) as client:
            yield client
    finally:
        await node.stop()


def running(cluster: Cluster) -> int:
    return sum(worker.host.running for worker in cluster.workers)


async def test_an_answer_is_the_fabrics_own():
    async with Cluster(workers=1) as cluster, gateway(cluster) as client:
        reply = await client.chat.completions.create(model="echo", messages=HELLO, seed=5, max_completion_tokens=9)
        async with AsyncClient(cluster.address) as direct:
            stream = direct.generate("hello", seed=5, temperature=1.0, max_new_tokens=9)
            assert reply.choices[0].message.content == await stream.text()
    [choice] = reply.choices
    assert (choice.finish_reason, choice.message.role, reply.object) == ("length", "assistant", "chat.completion")
    assert reply.usage is not None
    assert (reply.usage.completion_tokens, reply.usage.total_tokens) == (9, reply.usage.prompt_tokens + 9)
    assert reply.model == "echo"
    assert reply.system_fingerprint is not None
    assert reply.system_fingerprint.startswith("fp_")


async def test_a_stream_is_the_same_answer_in_chunks_with_usage_at_its_end():
    cluster = Cluster(workers=1, options={"token_interval_ms": "1"})
    async with cluster, gateway(cluster) as client:
        whole = await client.chat.completions.create(model="echo", messages=HELLO, seed=5, max_tokens=20)
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                model="echo",
                messages=HELLO,
                seed=5,
                max_tokens=20,
                stream=True,
                stream_options={"include_usage": True},
            )
        ]
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > 4


async def test_pictures_by_value_are_part_of_the_prompt():
    url = "data:image/png;base64," + base64.b64encode(b"a picture").decode()
    parts: Any = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    async with Cluster(workers=1) as cluster, gateway(cluster) as client:
        reply = await client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": parts}], seed=1, max_tokens=5
        )
        blind = await client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": parts[:1]}], seed=1, max_tokens=5
        )
    assert reply.choices[0].message.content != blind.choices[0].message.content
    assert reply.usage is not None
    details: Any = reply.usage.prompt_tokens_details
    assert details.image_tokens == 16


async def test_several_choices_differ_and_are_told_apart():
    async with Cluster(workers=2) as cluster, gateway(cluster) as client:
        asked: dict[str, Any] = {"model": "echo", "messages": HELLO, "n": 3, "seed": 2, "max_tokens": 6}
        whole = await client.chat.completions.create(**asked)
        texts = [choice.message.content for choice in whole.choices]
        assert len(set(texts)) == 3
        pieces = ["", "", ""]
        async for chunk in await client.chat.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                pieces[choice.index] += choice.delta.content or ""
    assert pieces == texts
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 18


async def test_log_probabilities_as_openai_tells_them():
    async with Cluster(workers=1) as cluster, gateway(cluster) as client:
        reply = await client.chat.completions.create(
            model="echo", messages=HELLO, max_tokens=4, logprobs=True, top_logprobs=2, seed=1
        )
        legacy = await client.completions.create(model="echo", prompt="Once", max_tokens=4, logprobs=2, seed=1)
    told = reply.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert "".join(one.token for one in told.content) == reply.choices[0].message.content
    assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in told.content)
    assert bytes(told.content[0].bytes or ()).decode() == told.content[0].token
    old = legacy.choices[0].logprobs
    assert old is not None
    assert old.tokens is not None
    assert "".join(old.tokens) == legacy.choices[0].text
    assert old.text_offset == [sum(map(len, old.tokens[:number])) for number in range(4)]


async def test_completions_of_several_prompts_in_one_piece_and_in_chunks():
    async with Cluster(workers=1) as cluster, gateway(cluster) as client:
        asked: dict[str, Any] = {"model": "echo", "prompt": ["Once", "Twice"], "max_tokens": 5, "seed": 3}
        whole = await client.completions.create(**asked)
        pieces = ["", ""]
        async for chunk in await client.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                pieces[choice.index] += choice.text
    assert pieces == [choice.text for choice in whole.choices]
    assert pieces[0] != pieces[1]
    assert whole.object == "text_completion"


async def test_stop_strings_end_it_and_are_not_part_of_it():
    async with Cluster(workers=1) as cluster, gateway(cluster) as client:
        whole = await client.chat.completions.create(model="echo", messages=HELLO, seed=1, max_tokens=20)
        text = whole.choices[0].message.content or ""
        word = text.split()[4]
        cut = await client.chat.completions.create(model="echo", messages=HELLO, seed=1, max_tokens=20, stop=word)
    assert cut.choices[0].message.content == text[: text.index(word)]
    assert cut.choices[0].finish_reason == "stop"


async def test_models_are_listed_and_found():
    async with Cluster(workers=2) as cluster, gateway(cluster) as client:
        listed = await client.models.list()
        assert [model.id for model in listed.data] == ["echo"]
        assert (await client.models.retrieve("echo")).id == "echo"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("nobody")


@pytest.mark.parametrize(
    ("changes", "error", "code", "param"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model_not_found", "model"),
        ({"messages": []}, openai.BadRequestError, "invalid_value", "messages"),
        ({"temperature": -1.0}, openai.BadRequestError, "SAMPLING_INVALID", "temperature"),
        ({"extra_body": {"nonsense": 1}}, openai.BadRequestError, "unknown_parameter", "nonsense"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            openai.BadRequestError,
            "unsupported_parameter",
            "tools",
        ),
        (
            {"messages": [{"role": "user", "content": "word " * 100_000}]},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_wrong_is_said_in_openais_way_before_anything_is_streamed(
    changes: dict[str, Any], error: type[openai.APIStatusError], code: str, param: str, stream: bool
):
    async with Cluster(workers=1) as cluster, gateway(cluster) as client:
        with pytest.raises(error) as caught:
            await client.chat.completions.create(**{"model": "echo", "messages": HELLO, "stream": stream, **changes})
        assert (caught.value.code, caught.value.param) == (code, param)
        assert (await client.chat.completions.create(model="echo", messages=HELLO, max_tokens=2)).choices


async def test_a_full_fleet_says_when_to_try_again():
    settings = EngineSettings(slots=1, options={"hang_after": "1"})
    cluster = Cluster(workers=1, engine_settings=settings, queue_length=0)
    async with cluster, gateway(cluster) as client:
        holder = await client.chat.completions.create(model="echo", messages=HELLO, stream=True)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="echo", messages=HELLO)
        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.body["reason"] == "ALL_SLOTS_TAKEN"  # type: ignore[index]
        await holder.close()


async def test_nobody_behind_it_is_unavailable_and_so_is_its_health():
    async with Cluster(workers=0) as cluster, gateway(cluster) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="echo", messages=HELLO)
        assert caught.value.status_code == 503
        async with httpx.AsyncClient() as http:
            health = await http.get(str(client.base_url).replace("/v1/", "/health"))
        assert (health.status_code, health.json()["reason"]) == (503, "NO_LIVE_WORKER")


async def test_an_error_in_mid_answer_is_the_last_event():
    cluster = Cluster(workers=1, options={"fail_after": "3", "token_interval_ms": "1"})
    async with cluster, gateway(cluster) as client, httpx.AsyncClient() as http:
        body = {"model": "echo", "messages": HELLO, "stream": True}
        reply = await http.post(f"{client.base_url}chat/completions", json=body)
        events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: ")]
        assert reply.status_code == 200
        assert events[-1]["error"]["reason"] == "ENGINE_FAILED"
        with pytest.raises(openai.APIError):
            async for _ in await client.chat.completions.create(model="echo", messages=HELLO, stream=True):
                pass


@pytest.mark.parametrize("stream", [True, False])
async def test_a_closed_connection_frees_the_slot(stream: bool):
    cluster = Cluster(workers=1, options={"hang_after": "2"})
    async with cluster, gateway(cluster) as client:
        asking = asyncio.create_task(
            client.chat.completions.create(model="echo", messages=HELLO, stream=stream, max_tokens=9)
        )
        await until(lambda: running(cluster) == 1)
        if stream:
            await (await asking).close()
        else:
            asking.cancel()
        await until(lambda: running(cluster) == 0)


async def test_a_closed_connection_leaves_the_queue():
    settings = EngineSettings(slots=1, options={"hang_after": "1"})
    cluster = Cluster(workers=1, engine_settings=settings)
    async with cluster, gateway(cluster) as client:
        holder = await client.chat.completions.create(model="echo", messages=HELLO, stream=True)
        waiting = asyncio.create_task(client.chat.completions.create(model="echo", messages=HELLO, stream=True))
        dispatcher = cluster.controller.fleet.dispatcher
        await until(lambda: dispatcher.waiting("echo") == 1)
        waiting.cancel()
        await until(lambda: dispatcher.waiting("echo") == 0)
        await holder.close()


async def test_fifty_streams_at_once_are_each_right():
    cluster = Cluster(workers=2, options={"token_interval_ms": "1"})
    async with cluster, gateway(cluster) as client:

        async def ask(number: int) -> str:
            text = ""
            asked: Any = [{"role": "user", "content": f"question {number}"}]
            async for chunk in await client.chat.completions.create(
                model="echo", messages=asked, stream=True, seed=number, max_tokens=20
            ):
                text += "".join(choice.delta.content or "" for choice in chunk.choices)
            return text

        texts = await asyncio.gather(*map(ask, range(50)))
        async with AsyncClient(cluster.address) as direct:
            for number, text in enumerate(texts):
                stream = direct.generate(f"question {number}", seed=number, temperature=1.0, max_new_tokens=20)
                assert text == await stream.text()


async def test_the_synchronous_sdk_too():
    async with Cluster(workers=1) as cluster, gateway(cluster) as client:

        def ask() -> list[str]:
            with openai.OpenAI(base_url=client.base_url, api_key="a key", max_retries=0) as plain:
                whole = plain.chat.completions.create(model="echo", messages=HELLO, seed=1, max_tokens=5)
                stream = plain.chat.completions.create(model="echo", messages=HELLO, seed=1, max_tokens=5, stream=True)
                text = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
                return [whole.choices[0].message.content or "", text]

        whole, streamed = await asyncio.to_thread(ask)
    assert whole == streamed != ""


async def test_keys_open_the_api_and_nothing_else_does():
    async with Cluster(workers=1) as cluster, gateway(cluster, api_keys=("a key", "another")) as client:
        assert (await client.models.list()).data
        for wrong in (client.with_options(api_key="nonsense"), client.with_options(api_key="a ke")):
            with pytest.raises(openai.AuthenticationError):
                await wrong.models.list()
        async with httpx.AsyncClient() as http:
            root = str(client.base_url).removesuffix("/v1/")
            assert (await http.get(f"{root}/v1/models")).status_code == 401
            assert (await http.get(f"{root}/health")).status_code == 200


async def test_a_body_over_the_limit_is_refused_and_the_next_one_answered():
    async with (
        Cluster(workers=1) as cluster,
        gateway(cluster, body_bytes=100_000) as client,
        httpx.AsyncClient() as http,
    ):
        large: Any = [{"role": "user", "content": "x" * 200_000}]
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(model="echo", messages=large)
        assert caught.value.status_code == 413

        async def endless() -> AsyncIterator[bytes]:
            for _ in range(1000):
                yield b" " * 1000

        async with httpx.AsyncClient() as http:
            chunked = await http.post(f"{client.base_url}chat/completions", content=endless())
        assert chunked.status_code == 413
        assert (await client.chat.completions.create(model="echo", messages=HELLO, max_tokens=2)).choices


async def test_requests_have_names_are_counted_and_pages_of_other_sites_may_ask_where_allowed():
    async with Cluster(workers=1) as cluster, gateway(cluster, cors_origins=("https://a.example",)) as client:
        async with httpx.AsyncClient(base_url=str(client.base_url).removesuffix("/v1/")) as http:
            headers = {"x-request-id": "my-name", "origin": "https://a.example"}
            body = {"messages": HELLO, "max_tokens": 2}
            reply = await http.post("/v1/chat/completions", json=body, headers=headers)
            assert reply.headers["x-request-id"] == "my-name"
            assert reply.headers["access-control-allow-origin"] == "https://a.example"
            assert reply.json()["id"] == "chatcmpl-my-name"
            cut = await http.post("/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})
            assert cut.json()["error"]["code"] == "invalid_json"
            assert (await http.get("/v1/nothing")).json()["error"]["type"] == "invalid_request_error"
            metrics = (await http.get("/metrics")).text
            assert 'llava_grpc_gateway_requests_total{route="chat",status="200"} 1.0' in metrics
            assert 'llava_grpc_gateway_tokens_total{kind="answer"} 2.0' in metrics
            assert (await http.get("/openapi.json")).json()["info"]["title"] == "llava-grpc"


async def test_a_taken_port_is_an_error_at_once():
    async with Cluster(workers=0) as cluster, gateway(cluster) as client:
        port = int(str(client.base_url.port))
        with pytest.raises(SettingsError, match="cannot listen"):
            await GatewayNode(GatewaySettings(port=port, controllers=(cluster.address,))).start()
