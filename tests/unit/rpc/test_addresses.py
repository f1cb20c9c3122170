"""Where a node says that it can be reached."""

import pytest

from llava_grpc.config import is_address
from llava_grpc.rpc.addresses import own_address


@pytest.mark.parametrize(("host", "address"), [("127.0.0.1", "127.0.0.1:7"), ("gpu-1", "gpu-1:7"), ("::1", "[::1]:7")])
def test_it_is_where_it_listens(host: str, address: str):
    assert own_address(host, 7, ["10.0.0.1:21001"]) == address


@pytest.mark.parametrize("everywhere", ["0.0.0.0", "::", ""])
def test_on_every_interface_it_is_the_one_on_the_way_to_the_controller(everywhere: str):
    assert own_address(everywhere, 7, ["127.0.0.1:21001"]) == "127.0.0.1:7"
    assert own_address(everywhere, 7, ["not an address", "127.0.0.1:21001"]) == "127.0.0.1:7"


def test_without_a_controller_it_is_the_machines_name():
    address = own_address("0.0.0.0", 7, [])
    assert is_address(address)
    assert not address.startswith("0.0.0.0")
