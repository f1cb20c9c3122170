"""What queueing theory says: mean responses where work is exponential with mean 1 and arrivals are Poisson."""

from __future__ import annotations


def one_server(load: float) -> float:
    """M/M/1: also each server of a fleet where every request goes to one by lot."""
    return 1 / (1 - load)


def central_queue(servers: int, load: float) -> float:
    """M/M/c: one queue before `servers` servers."""
    return 1 + must_wait(servers, load) / (servers * (1 - load))


def must_wait(servers: int, load: float) -> float:
    """The share of requests that wait there (Erlang's C), from the stable recursion of Erlang's B."""
    offered = servers * load
    blocked = 1.0
    for server in range(1, servers + 1):
        blocked = offered * blocked / (server + offered * blocked)
    return blocked / (1 - load * (1 - blocked))


def two_choices(load: float) -> float:
    """The shorter of two queues drawn by lot, as the number of servers grows (Vvedenskaya; Mitzenmacher)."""
    total, power = 0.0, 2
    while (term := load ** (power - 2)) > 1e-15:
        total += term
        power *= 2
    return total
