"""Where a client may go: addresses as people write them, checked before anything is dialled."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from llava_grpc.config import DEFAULT_CONTROLLER_PORT, SettingsError, is_address

ADDRESS_VARIABLE = "LLAVA_GRPC_CONTROLLER"
DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_CONTROLLER_PORT}"


def addresses_of(given: str | Iterable[str] | None) -> tuple[str, ...]:
    """The addresses, each once, in the order given.

    Args:
        given: one, several, or a text of several with commas between. None, or an empty text, takes the environment
            variable LLAVA_GRPC_CONTROLLER, or else the default.

    Raises:
        SettingsError: one is no address, or there is none at all.
    """
    if given is None or given == "":
        given = os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
    texts = (given,) if isinstance(given, str) else given
    parts = [part.strip() for text in texts for part in text.split(",")]
    addresses = tuple(dict.fromkeys(_checked(part) for part in parts if part))
    if not addresses:
        raise SettingsError("there is no address: give at least one HOST:PORT")
    return addresses


def _checked(address: str) -> str:
    """An address that gRPC cannot take for another one (it dials a bare name at port 443)."""
    if address.startswith(("http://", "https://")):
        raise SettingsError(f"the address {address!r} is not HOST:PORT: leave out the {address.split(':')[0]}://")
    if "/" not in address and not is_address(address):  # unix:/..., dns:///... are gRPC's to understand
        hint = ""
        if re.fullmatch(r"[^\s:/]+:?", address):
            hint = f"; write {address.rstrip(':')}:{DEFAULT_CONTROLLER_PORT}"
        elif address.count(":") > 1 and not address.startswith("["):
            hint = f"; write [{address}]:{DEFAULT_CONTROLLER_PORT}"
        raise SettingsError(f"the address {address!r} is not HOST:PORT with a port from 1 to 65535{hint}")
    return address
