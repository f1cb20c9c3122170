"""The exception tree and its table of codes agree, on the wire and back."""

import re
from collections import Counter
from pathlib import Path

import grpc
import pytest

from llava_grpc import errors
from llava_grpc.errors import LlavaGrpcError
from llava_grpc.rpc.status import CODES, DETAILS_KEY, code_of, explain_rpc_error, from_rpc_error, to_trailers

LEAVES = list(LlavaGrpcError.leaves())
DOCS = Path(__file__).parents[2] / "docs" / "errors.md"


class FakeRpcError:
    def __init__(self, code: grpc.StatusCode, details: str = "", trailers: tuple[tuple[str, bytes], ...] = ()):
        self._code, self._details, self._trailers = code, details, trailers

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return self._trailers


def test_one_reason_each_and_a_code_for_every_reason():
    assert [reason for reason, count in Counter(leaf.reason for leaf in LEAVES).items() if count > 1] == []
    assert {leaf.reason for leaf in LEAVES} == set(CODES)


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.reason)
def test_an_error_survives_the_wire(leaf: type[LlavaGrpcError]):
    sent = leaf("the cause: ünïcode 猫", retry_after=1.5, metadata={"limit": "7"})
    received = from_rpc_error(FakeRpcError(code_of(sent), str(sent), to_trailers(sent)))
    assert type(received) is leaf
    assert received is not None
    assert (received.cause, received.remedy, received.retry_after) == (sent.cause, sent.remedy, 1.5)
    assert received.metadata == {"limit": "7"}
    assert str(received) == str(sent)


def test_a_very_long_cause_still_fits_the_trailers():
    [(_, details)] = to_trailers(errors.ImageInvalidError("x" * 100_000))
    assert len(details) < 4096


@pytest.mark.parametrize(
    ("code", "details", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, "connection refused", errors.ServerUnreachableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", errors.DeadlineExceededError),
        (grpc.StatusCode.CANCELLED, "", errors.RequestCancelledError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (5 vs. 4)", errors.MessageTooLargeError),
        (grpc.StatusCode.UNIMPLEMENTED, "", errors.ProtocolVersionError),
        (grpc.StatusCode.UNKNOWN, "boom", errors.EngineFailedError),
    ],
)
def test_statuses_of_strangers_are_explained(code: grpc.StatusCode, details: str, expected: type[LlavaGrpcError]):
    stranger = FakeRpcError(code, details)
    assert from_rpc_error(stranger) is None
    assert type(explain_rpc_error(stranger, "host:1")) is expected


def test_a_reason_of_a_newer_server_keeps_its_words():
    class BrandNewError(LlavaGrpcError):
        reason = "BRAND_NEW"

    try:
        received = from_rpc_error(FakeRpcError(grpc.StatusCode.UNKNOWN, "", to_trailers(BrandNewError("it is new"))))
        assert type(received) is LlavaGrpcError
        assert "BRAND_NEW" in str(received)
        assert "it is new" in str(received)
    finally:
        del BrandNewError


def test_somebody_elses_details_are_not_ours():
    [(key, _)] = to_trailers(errors.ImageInvalidError("x"))
    assert key == DETAILS_KEY
    assert from_rpc_error(FakeRpcError(grpc.StatusCode.UNKNOWN, "", ((key, b""),))) is None


def test_the_docs_list_every_reason():
    documented = set(re.findall(r"^\| `([A-Z_]+)`", DOCS.read_text(), re.MULTILINE))
    assert documented == set(CODES)
