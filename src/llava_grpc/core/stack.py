"""A fleet as one worker of another controller: what a controller says of itself to its parent.

Laws: what it offers is what its live workers offer together; it names every controller that stands behind it, itself
among them, so that one which finds itself named can refuse (requests would go round in circles).
"""

from __future__ import annotations

from llava_grpc.core.registry import Registry
from llava_grpc.core.states import WorkerState
from llava_grpc.core.worker import Registration


def those_alive(registry: Registry) -> list[Registration]:
    """The workers that may get work, as registered."""
    return [worker.registration for worker in registry.workers() if worker.state is WorkerState.ALIVE]


def as_one_worker(registry: Registry, address: str, incarnation: str, version: str) -> Registration | None:
    """The fleet's registration under a controller's address and incarnation; None while nobody may get work."""
    alive = those_alive(registry)
    if not alive:
        return None
    behind = {name for worker in registry.workers() for name in worker.registration.controllers}
    return Registration(
        address=address,
        incarnation=incarnation,
        cards=tuple(listed.card for listed in registry.models()),
        speed=sum(one.speed for one in alive),
        slots=sum(one.slots for one in alive),
        version=version,
        kv_tokens=sum(one.kv_tokens for one in alive) if all(one.kv_tokens for one in alive) else 0,
        cached_pictures=sum(one.cached_pictures for one in alive),
        controllers=tuple(sorted({incarnation, *behind})),
    )
