"""Where a node says that it can be reached, when it was told nothing else."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable


def own_address(host: str, port: int, towards: Iterable[str]) -> str:
    """HOST:PORT of a node that listens on `host`; where that is every interface, this machine's address on the way to
    the first of `towards` (each HOST:PORT) that is known."""
    if host in ("0.0.0.0", "::", ""):
        host = _address_towards(towards)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _address_towards(controllers: Iterable[str]) -> str:
    """Nothing is sent: a UDP connect only looks the way up."""
    for controller in controllers:
        host, _, port = controller.rpartition(":")
        with contextlib.suppress(OSError, ValueError):
            family = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
            with socket.socket(family[0], socket.SOCK_DGRAM) as probe:
                probe.connect(family[4])
                return str(probe.getsockname()[0])
    return socket.gethostname()
