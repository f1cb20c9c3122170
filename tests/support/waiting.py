"""Waiting for a condition that has no event of its own."""

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    """Let the loop run until `condition` holds.

    Raises:
        TimeoutError: it does not within `timeout` seconds.
    """
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0)
