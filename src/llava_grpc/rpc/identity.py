"""Names and seeds for requests that came without."""

from __future__ import annotations

import secrets

SEED_BITS = 32
"""Seeds drawn here stay small enough to be typed and to survive JSON."""


def new_request_id() -> str:
    """A name for a request: 16 hex digits."""
    return secrets.token_hex(8)


def new_seed() -> int:
    """A seed for sampling."""
    return secrets.randbits(SEED_BITS)
