"""Drills: what a fleet of real processes does when its parts are killed, frozen, cut off, restarted.

    stage       seed, progress, processes in order      mix      the requests
    load        an open loop of them, judged            rest     whether a fleet holds nothing any more
    outcome     what a drill found, and its report

and a module a drill. `python -m drills` runs them; `make chaos` does.

Laws: what is judged is what came, token by token, against the same requests without a fault; every choice comes from
one seed, which is printed; no process outlives its drill.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from drills import black_hole, cancels, controllers, cuts, freezes, rolling, wall_clock
from drills.outcome import Outcome
from drills.stage import Stage

DRILLS: dict[str, Callable[[Stage], Awaitable[Outcome]]] = {
    "echo-cuts": cuts.echo,
    "model-cuts": cuts.model,
    freezes.NAME: freezes.drill,
    wall_clock.NAME: wall_clock.drill,
    black_hole.NAME: black_hole.drill,
    cancels.NAME: cancels.drill,
    cancels.MODEL: cancels.model,
    controllers.NAME: controllers.drill,
    rolling.NAME: rolling.drill,
}
"""In the order in which they are played."""
