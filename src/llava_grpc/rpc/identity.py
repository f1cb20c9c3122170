"""Names and seeds for whatever came without."""

from __future__ import annotations

from random import Random

SEED_BITS = 32
"""Seeds drawn here stay small enough to be typed and to survive JSON."""


def new_request_id(random: Random) -> str:
    """A name for a request: 16 hex digits."""
    return f"{random.getrandbits(64):016x}"


def new_incarnation(random: Random) -> str:
    """A name for one life of a worker: 32 hex digits."""
    return f"{random.getrandbits(128):032x}"


def new_seed(random: Random) -> int:
    """A seed for sampling."""
    return random.getrandbits(SEED_BITS)
