"""Where the client goes."""

from collections.abc import Iterable

import pytest

from llava_grpc.client import AsyncClient
from llava_grpc.config import SettingsError


def test_the_environment_names_the_controller_where_nobody_else_does(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LLAVA_GRPC_CONTROLLER", raising=False)
    assert AsyncClient().address == "127.0.0.1:21001"
    monkeypatch.setenv("LLAVA_GRPC_CONTROLLER", "there:1")
    assert AsyncClient().address == "there:1"
    assert AsyncClient("here:2").address == "here:2"
    monkeypatch.setenv("LLAVA_GRPC_CONTROLLER", "there:1, there:2")
    assert AsyncClient().addresses == ("there:1", "there:2")


@pytest.mark.parametrize(
    "several", ["a:1,b:2", " a:1 , b:2, ", ["a:1", "b:2"], ("a:1,b:2",), ["a:1", "b:2", "a:1"], iter(["a:1", "b:2"])]
)
def test_several_addresses_are_asked_in_their_order(several: str | Iterable[str]):
    client = AsyncClient(several)
    assert client.addresses == ("a:1", "b:2")
    assert client.address == "a:1"


@pytest.mark.parametrize("nothing", [(), ",", [""]])
def test_no_address_is_an_error(nothing: str | Iterable[str]):
    with pytest.raises(SettingsError, match="at least one"):
        AsyncClient(nothing)


def test_one_bad_address_among_good_ones_is_told():
    with pytest.raises(SettingsError, match="'b'"):
        AsyncClient("a:1,b,c:3")


def test_no_attempt_at_all_is_refused():
    with pytest.raises(SettingsError, match="attempts"):
        AsyncClient("a:1", attempts=0)


@pytest.mark.parametrize("address", ["host", "http://host:1", "https://host", "host:", "::1"])
def test_an_address_that_grpc_would_take_for_another_is_refused(address: str):
    with pytest.raises(SettingsError, match="address"):
        AsyncClient(address)


@pytest.mark.parametrize("address", ["host:1", "[::1]:1", "unix:/tmp/socket", "dns:///host:1"])
def test_what_grpc_understands_is_taken(address: str):
    assert AsyncClient(address).address == address
