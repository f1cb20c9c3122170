"""Where the client goes."""

import pytest

from llava_grpc.client import AsyncClient
from llava_grpc.config import SettingsError


def test_the_environment_names_the_controller_where_nobody_else_does(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LLAVA_GRPC_CONTROLLER", raising=False)
    assert AsyncClient().address == "127.0.0.1:21001"
    monkeypatch.setenv("LLAVA_GRPC_CONTROLLER", "there:1")
    assert AsyncClient().address == "there:1"
    assert AsyncClient("here:2").address == "here:2"


@pytest.mark.parametrize("address", ["host", "http://host:1", "https://host", "host:", "::1"])
def test_an_address_that_grpc_would_take_for_another_is_refused(address: str):
    with pytest.raises(SettingsError, match="address"):
        AsyncClient(address)


@pytest.mark.parametrize("address", ["host:1", "[::1]:1", "unix:/tmp/socket", "dns:///host:1"])
def test_what_grpc_understands_is_taken(address: str):
    assert AsyncClient(address).address == address
