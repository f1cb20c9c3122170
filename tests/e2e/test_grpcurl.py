"""A stranger's tool against real processes: what grpcurl sees is what any client in any language sees."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image

from llava_grpc.demo import SAMPLE
from llava_grpc.errors import MessageTooLargeError
from llava_grpc.rpc.channels import channel_options
from llava_grpc.rpc.status import explain_rpc_error
from llava_grpc.v1 import inference_pb2 as pb
from llava_grpc.v1.inference_pb2_grpc import InferenceServiceStub
from tests.e2e.conftest import ProcessFleet
from tests.support.processes import start_controller, start_worker

GRPCURL = Path(sys.executable).with_name("grpcurl")
INFERENCE = "llava_grpc.v1.InferenceService"
CONTROLLER = "llava_grpc.v1.ControllerService"
WORKER = "llava_grpc.v1.WorkerService"
HEALTH = "grpc.health.v1.Health"
CHANNELZ = "grpc.channelz.v1.Channelz"
MIB = 1024 * 1024

pytestmark = pytest.mark.skipif(not GRPCURL.exists(), reason="grpcurl is not beside this Python")


def grpcurl(*arguments: str, data: object = None) -> subprocess.CompletedProcess[str]:
    """Run grpcurl; `data` becomes JSON on its standard input."""
    request = () if data is None else ("-d", "@")
    return subprocess.run(
        [str(GRPCURL), "-plaintext", "-max-time", "60", *request, *arguments],
        input=None if data is None else json.dumps(data),
        stdin=subprocess.DEVNULL if data is None else None,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def answers(*arguments: str, data: object = None) -> list[dict[str, Any]]:
    """The messages that grpcurl printed; it must have succeeded."""
    done = grpcurl(*arguments, data=data)
    assert done.returncode == 0, done.stderr
    decoder, text, messages = json.JSONDecoder(), done.stdout.strip(), []
    while text:
        message, end = decoder.raw_decode(text)
        messages.append(snake_case(message))
        text = text[end:].lstrip()
    return messages


def snake_case(value: Any) -> Any:
    """JSON with the contract's own names. grpcurl finds lowerCamelCase in descriptors; Python's lack it."""
    match value:
        case dict():
            return {re.sub(r"[A-Z]", lambda m: "_" + m[0].lower(), name): snake_case(v) for name, v in value.items()}
        case list():
            return [snake_case(one) for one in value]
        case _:
            return value


def failure(*arguments: str, data: object = None) -> str:
    """What grpcurl said of an error."""
    done = grpcurl(*arguments, data=data)
    assert done.returncode != 0, done.stdout
    return done.stderr


def picture() -> str:
    """A PNG, in base64 as JSON has bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 30, 30)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def question(text: str, image: str, **sampling: object) -> dict[str, object]:
    """A GenerateRequest in JSON: a picture and a question about it."""
    parts = [{"image": {"data": image}}, {"text": text}]
    return {"conversation": {"turns": [{"role": "ROLE_USER", "parts": parts}]}, "sampling": sampling}


def text_of(frames: list[dict[str, Any]]) -> str:
    """The answer that a stream spells."""
    return "".join(piece for frame in frames for piece in frame.get("delta", {}).get("text", []))


# -------------------------------------------------------------------------------------------------------------- health


def test_health_overall_and_by_service(fleet: ProcessFleet) -> None:
    for node, services in (
        (fleet.controller, ("", CONTROLLER, INFERENCE)),
        (fleet.worker, ("", WORKER, INFERENCE)),
    ):
        for service in services:
            assert answers(node.address, f"{HEALTH}/Check", data={"service": service}) == [{"status": "SERVING"}]


def test_health_of_an_unknown_service_is_not_found(fleet: ProcessFleet) -> None:
    assert "Code: NotFound" in failure(fleet.controller.address, f"{HEALTH}/Check", data={"service": "no.such"})


# ---------------------------------------------------------------------------------------------------------- reflection


def test_reflection_lists_what_is_served(fleet: ProcessFleet) -> None:
    common = {INFERENCE, WORKER, HEALTH, CHANNELZ, "grpc.reflection.v1alpha.ServerReflection"}
    assert set(grpcurl(fleet.controller.address, "list").stdout.split()) == common | {CONTROLLER}
    assert set(grpcurl(fleet.worker.address, "list").stdout.split()) == common


def test_reflection_lists_methods(fleet: ProcessFleet) -> None:
    listed = grpcurl(fleet.controller.address, "list", CONTROLLER).stdout.split()
    assert {
        f"{CONTROLLER}.{method}" for method in ("Register", "Heartbeat", "Deregister", "ListWorkers", "Drain")
    } <= set(listed)


def test_reflection_describes_every_service_and_its_messages(fleet: ProcessFleet) -> None:
    for node in (fleet.controller, fleet.worker):
        for service in grpcurl(node.address, "list").stdout.split():
            described = grpcurl(node.address, "describe", service)
            assert described.returncode == 0, described.stderr
            assert f"{service} is a service" in described.stdout
        service = grpcurl(node.address, "describe", INFERENCE).stdout
        assert (
            "rpc Generate ( .llava_grpc.v1.GenerateRequest ) returns ( stream .llava_grpc.v1.GenerateResponse );"
            in service
        )
        message = grpcurl(node.address, "describe", "llava_grpc.v1.SamplingParams").stdout
        assert "temperature" in message
        assert "optional" in message


# --------------------------------------------------------------------------------------------------------------- fleet


def test_models_and_workers(fleet: ProcessFleet) -> None:
    (models,) = answers(fleet.controller.address, f"{INFERENCE}/ListModels")
    (model,) = models["models"]
    assert model["name"] == "echo"
    assert model["sees_images"] is True
    assert model["workers"] == 1

    (workers,) = answers(fleet.controller.address, f"{CONTROLLER}/ListWorkers")
    (worker,) = workers["workers"]
    assert worker["address"] == fleet.worker.address
    assert worker["state"] == "WORKER_STATE_ALIVE"
    assert worker["models"] == ["echo"]
    assert worker["check_heartbeat"] is True

    (status,) = answers(fleet.worker.address, f"{WORKER}/GetStatus")
    assert status["incarnation"] == worker["incarnation"]


# ------------------------------------------------------------------------------------------------------------ generate


def test_generate_with_a_picture_streams_frames(fleet: ProcessFleet) -> None:
    request = question("What is this?", picture(), max_new_tokens=12, seed=7)
    request["request_id"] = "asked-by-grpcurl"
    frames = answers(fleet.controller.address, f"{INFERENCE}/Generate", data=request)

    started, *deltas, finished = frames
    assert started["started"]["request_id"] == "asked-by-grpcurl"
    assert started["started"]["seed"] == "7"
    assert started["started"]["worker_address"] == fleet.worker.address
    offset = 0
    for frame in deltas:
        offset += len(frame["delta"]["token_ids"])
        assert frame["delta"]["end_offset"] == offset
    assert offset == 12
    assert finished["finished"]["reason"] == "FINISH_REASON_LENGTH"
    assert finished["finished"]["usage"]["completion_tokens"] == 12
    assert finished["finished"]["usage"]["image_tokens"] > 0

    direct = answers(fleet.worker.address, f"{INFERENCE}/Generate", data=request)
    assert text_of(direct) == text_of(frames) != ""


def test_the_bundled_model_sees_a_picture() -> None:
    with (
        start_controller() as controller,
        start_worker(controller.address, "--engine", "transformers", "--device", "cpu", "--threads", "1"),
    ):
        image = base64.b64encode(Path(SAMPLE.picture).read_bytes()).decode()
        frames = answers(controller.address, f"{INFERENCE}/Generate", data=question(SAMPLE.question, image))
        assert text_of(frames).strip() == SAMPLE.answer


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        (lambda request: request | {"model": "no-such-model"}, "NotFound", "MODEL_NOT_FOUND"),
        (lambda request: request | {"sampling": {"temperature": -1}}, "InvalidArgument", "SAMPLING_INVALID"),
        (lambda request: request | {"request_id": "x" * 129}, "InvalidArgument", "REQUEST_ID_INVALID"),
        (lambda request: request | {"conversation": {}}, "InvalidArgument", "PROMPT_INVALID"),
    ],
    ids=["model", "sampling", "request-id", "no-turns"],
)
def test_errors_carry_code_reason_and_remedy(
    fleet: ProcessFleet, change: Callable[[dict[str, object]], object], code: str, reason: str
) -> None:
    said = failure(fleet.controller.address, f"{INFERENCE}/Generate", data=change(question("What?", picture())))
    assert f"Code: {code}" in said
    assert "type.googleapis.com/google.rpc.ErrorInfo" in said
    assert re.search(rf'"?reason"?: ?"{reason}"', said), said
    assert re.search(r'"?domain"?: ?"llava_grpc"', said), said
    assert "remedy" in said


def test_no_worker_is_an_error_that_says_what_to_do() -> None:
    with start_controller() as controller:
        said = failure(controller.address, f"{INFERENCE}/Generate", data=question("What?", picture()))
    assert "Code: Unavailable" in said
    assert "NO_LIVE_WORKER" in said
    assert "Start a worker" in said


# ------------------------------------------------------------------------------------------------------------ channelz


def test_channelz_shows_servers_their_calls_and_sockets(fleet: ProcessFleet) -> None:
    for node in (fleet.controller, fleet.worker):
        answers(node.address, f"{INFERENCE}/Generate", data=question("Hi", picture(), max_new_tokens=1))
        (servers,) = answers(node.address, f"{CHANNELZ}/GetServers")
        (server,) = servers["server"]
        assert int(server["data"]["calls_started"]) >= 1
        assert "127.0.0.1" in server["listen_socket"][0]["name"]
        asked = {"server_id": server["ref"]["server_id"]}
        (sockets,) = answers(node.address, f"{CHANNELZ}/GetServerSockets", data=asked)
        assert sockets["socket_ref"], "grpcurl's own connection, at least"


# -------------------------------------------------------------------------------------------------------------- limits


def padded(size: int) -> pb.GenerateRequest:
    """A question with a picture of `size` bytes."""
    image = pb.Image(data=bytes(size))
    turn = pb.Turn(role=pb.ROLE_USER, parts=[pb.Part(image=image), pb.Part(text="Big?")])
    return pb.GenerateRequest(
        conversation=pb.Conversation(turns=[turn]), sampling=pb.SamplingParams(max_new_tokens=3, seed=1)
    )


def test_a_picture_of_63_mib_passes_and_one_beyond_64_is_refused_without_harm(fleet: ProcessFleet) -> None:
    # The client's own limit is raised, so that it is the controller that refuses.
    with grpc.insecure_channel(fleet.controller.address, options=channel_options(256 * MIB)) as channel:
        stub = InferenceServiceStub(channel)
        frames = list(stub.Generate(padded(63 * MIB), timeout=90))
        assert frames[-1].finished.usage.completion_tokens == 3

        with pytest.raises(grpc.RpcError) as refused:
            list(stub.Generate(padded(65 * MIB), timeout=90))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in refused.value.details()
        assert isinstance(explain_rpc_error(refused.value, fleet.controller.address), MessageTooLargeError)

        again = list(stub.Generate(padded(1024), timeout=90))
        assert again[-1].finished.usage.completion_tokens == 3


def test_the_limit_is_a_flag_and_grpcurl_is_told_of_it() -> None:
    with start_controller("--max-message-mb", "1") as controller, start_worker(controller.address):
        too_large = base64.b64encode(bytes(2 * MIB)).decode()
        said = failure(controller.address, f"{INFERENCE}/Generate", data=question("Big?", too_large))
        assert "Code: ResourceExhausted" in said
        assert "larger than max" in said
        small = question("Small?", picture(), max_new_tokens=2)
        assert text_of(answers(controller.address, f"{INFERENCE}/Generate", data=small))
