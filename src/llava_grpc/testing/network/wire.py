"""Machines, the ways between them, and connections.

Laws:
1. What is sent in one direction of one call arrives in order, each piece after a delay of its own; calls overtake each
   other freely.
2. A way that is cut loses nothing: TCP sends again, so what was sent meanwhile arrives once it is whole, if the
   connection still stands. Each end of a connection finds out about silence by itself, by pings (keepalive).
3. A process that dies is missed at once, since its machine resets its connections; one whose machine lost its power is
   only silent, until the machine is back.
4. Nothing that a dead process does reaches anybody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import grpc

from llava_grpc.testing.virtual_time import Process, VirtualLoop

if TYPE_CHECKING:
    from llava_grpc.testing.network.calls import Call
    from llava_grpc.testing.network.channels import Channel
    from llava_grpc.testing.network.servers import Server, ServerCall

FASTEST, SPREAD = 0.0002, 0.0008
"""Seconds that a message takes at least, and the mean of what comes on top of it."""
CLIENT_PING, SERVER_PING = (10.0, 5.0), (20.0, 10.0)
"""Seconds between two pings while calls are open, and to wait for the answer (rpc/channels.py, rpc/server.py)."""
RESETS_WITHIN = 1.0
"""Seconds in which a machine that is back lets the peers of its former processes know."""


@dataclass(slots=True, eq=False)
class Pipe:
    """One direction of a call: how many pieces were sent and delivered, and those that came before their turn."""

    sent: int = 0
    delivered: int = 0
    early: dict[int, Piece] = field(default_factory=dict)


@dataclass(slots=True)
class Piece:
    """Something on its way; `number` is its place in its pipe."""

    number: int
    pipe: Pipe
    receiver: Process
    deliver: Callable[..., None]
    arguments: tuple[Any, ...]


@dataclass(slots=True)
class Way:
    """From one machine to another."""

    cut: int = 0
    """By how many partitions."""
    slower: float = 1.0
    waiting: list[Piece] = field(default_factory=list)


class Connection:
    """Between a channel and a server. Each end is open until it is closed or knows that it is broken."""

    def __init__(self, network: Wire, channel: Channel, server: Server) -> None:
        self.network, self.channel, self.server = network, channel, server
        self.client, self.host = channel.process, server.process
        self.client_open = self.server_open = True
        self.calls: dict[Call, None] = {}
        self.served: dict[ServerCall, None] = {}

    def to_server(self, pipe: Pipe, deliver: Callable[..., None], *arguments: Any) -> None:
        """Send from the client's end."""
        self.network.send(self.client, self.host, pipe, deliver, *arguments)

    def to_client(self, pipe: Pipe, deliver: Callable[..., None], *arguments: Any) -> None:
        """Send from the server's end."""
        self.network.send(self.host, self.client, pipe, deliver, *arguments)

    def close_client(self, details: str, *, tell: bool = True) -> None:
        """The client's end is closed, or has found the connection broken; `tell` the other end."""
        if not self.client_open:
            return
        self.client_open = False
        for call in list(self.calls):
            call.end(grpc.StatusCode.UNAVAILABLE, details)
        self.channel.disconnected(self)
        if tell:
            self.to_server(Pipe(), self.close_server, False)
        self._forget()

    def close_server(self, tell: bool = True) -> None:
        """The server's end."""
        if not self.server_open:
            return
        self.server_open = False
        for call in list(self.served):
            call.lost()
        if tell:
            self.to_client(Pipe(), self.close_client, "Socket closed")
        self._forget()

    def is_silent(self) -> bool:
        """Whether pings, or the answers to them, do not come through."""
        network = self.network
        return (
            network.way(self.client.host, self.host.host).cut > 0
            or network.way(self.host.host, self.client.host).cut > 0
            or not (self.client.answers_pings and self.host.answers_pings)
            or self.client.host in network.dark
            or self.host.host in network.dark
        )

    def watch(self) -> None:
        """Silence has begun, or a call on a silent connection: each end finds out when its ping is not answered."""
        network = self.network
        for process, (every, patience), find in (
            (self.client, CLIENT_PING, self._client_finds),
            (self.host, SERVER_PING, self._server_finds),
        ):
            after = network.random.uniform(0, every) + patience
            network.loop.call_later(after, find, network.silences, context=process.context)

    def _client_finds(self, silences: int) -> None:
        if self.calls and self._still_silent(silences):
            self.close_client("keepalive watchdog timeout")

    def _server_finds(self, silences: int) -> None:
        if self._still_silent(silences):
            self.close_server()

    def _still_silent(self, silences: int) -> bool:
        """Whether it is, and was all the time since then."""
        return self.is_silent() and self.network.spoke_at.get(self, -1) < silences

    def _forget(self) -> None:
        if not (self.client_open or self.server_open):
            self.network.connections.pop(self, None)
            self.network.spoke_at.pop(self, None)


class Wire:
    """See the module.

    Args:
        random: of the delays.

    Attributes:
        on_answer: told of each message that a server sends: who, the method, what it heard last, the message.
    """

    def __init__(self, loop: VirtualLoop, random: Random) -> None:
        self.loop, self.random = loop, random
        self.on_answer: Callable[[Process, str, bytes, bytes], None] = lambda *answer: None
        self.listening: dict[str, Server] = {}
        self.servers: dict[Process, Server] = {}
        self.connections: dict[Connection, None] = {}
        self.calling: Counter[tuple[Process, str]] = Counter()
        """Open calls, by who makes them and method."""
        self.dark: set[str] = set()
        """Machines without power."""
        self.duplicating = 0.0
        """The share of unary calls that arrive twice."""
        self.pieces = 0
        """Delivered so far."""
        self.silences = 0
        self.spoke_at: dict[Connection, int] = {}
        """The number of the last silence that was over for a connection."""
        self._ways: dict[tuple[str, str], Way] = {}
        self._hosts: dict[str, str] = {}

    def process(self, name: str, host: str) -> Process:
        """A new process on a machine."""
        return Process(self.loop, name, host)

    # ------------------------------------------------------------------------------------------------- on the way

    def way(self, source: str, target: str) -> Way:
        """From one machine to another; also from one to itself."""
        way = self._ways.get((source, target))
        if way is None:
            way = self._ways[source, target] = Way()
        return way

    def send(
        self, sender: Process, receiver: Process, pipe: Pipe, deliver: Callable[..., None], *arguments: Any
    ) -> None:
        """Have `deliver(*arguments)` run in the receiver, when it has come there."""
        if not sender.alive or sender.host in self.dark:
            return
        pipe.sent += 1
        way = self.way(sender.host, receiver.host)
        self._launch(way, Piece(pipe.sent, pipe, receiver, deliver, arguments))

    def _launch(self, way: Way, piece: Piece) -> None:
        if way.cut:
            way.waiting.append(piece)
            return
        delay = (FASTEST + self.random.expovariate(1 / SPREAD)) * way.slower
        self.loop.call_later(delay, self._arrive, way, piece, context=piece.receiver.context)

    def _arrive(self, way: Way, piece: Piece) -> None:
        if way.cut:
            way.waiting.append(piece)
            return
        pipe = piece.pipe
        pipe.early[piece.number] = piece
        while (turn := pipe.early.pop(pipe.delivered + 1, None)) is not None:
            pipe.delivered += 1
            if turn.receiver.alive:
                self.pieces += 1
                turn.deliver(*turn.arguments)

    # ---------------------------------------------------------------------------------------------- what befalls it

    def cut(self, source: str, target: str) -> None:
        """Nothing gets from one machine to the other any more."""
        self.way(source, target).cut += 1
        self.silence_began()

    def mend(self, source: str, target: str) -> None:
        """It does again, and what was sent meanwhile is sent again."""
        way = self.way(source, target)
        way.cut -= 1
        if not way.cut:
            waiting, way.waiting = way.waiting, []
            for piece in waiting:
                self._launch(way, piece)
        self.silence_ended()

    def silence_began(self) -> None:
        """To be called when a way was cut, a process frozen or a machine lost its power."""
        self.silences += 1
        for connection in self.connections:
            if connection.is_silent():
                connection.watch()

    def silence_ended(self) -> None:
        """To be called when one of those is over."""
        self.silences += 1
        for connection in self.connections:
            if not connection.is_silent():
                self.spoke_at[connection] = self.silences

    def reset(self, one: str, other: str) -> None:
        """Something between two machines breaks all connections between them: both ends are told at once."""
        for connection in list(self.connections):
            if {connection.client.host, connection.host.host} == {one, other}:
                self._reset(connection)

    def _reset(self, connection: Connection) -> None:
        if connection.client.alive:
            self.loop.call_soon(connection.close_client, "Connection reset by peer", context=connection.client.context)
        if connection.host.alive:
            self.loop.call_soon(connection.close_server, context=connection.host.context)

    def died(self, process: Process) -> None:
        """To be called after a process was killed: its machine resets its connections and frees its port."""
        for address, server in list(self.listening.items()):
            if server.process is process:
                del self.listening[address]
        if process.host in self.dark:
            self.silence_began()
        else:
            self._disown(process)

    def lights_out(self, host: str) -> None:
        """A machine loses its power. Kill its processes next."""
        self.dark.add(host)

    def lights_on(self, host: str) -> None:
        """It is back, and resets the connections of its former processes as it hears of them."""
        self.dark.discard(host)
        self.silence_ended()
        ends = (end for connection in self.connections for end in (connection.client, connection.host))
        for process in dict.fromkeys(end for end in ends if end.host == host and not end.alive):
            self.loop.call_later(self.random.uniform(0, RESETS_WITHIN), self._disown, process)

    def _disown(self, process: Process) -> None:
        """The peers of a dead process learn that it is gone."""
        for connection in list(self.connections):
            if connection.client is process:
                connection.client_open = False
                self._launch_from(process, connection.host, connection.close_server, False)
                connection._forget()
            elif connection.host is process:
                connection.server_open = False
                self._launch_from(process, connection.client, connection.close_client, "Socket closed")
                connection._forget()

    def _launch_from(self, dead: Process, receiver: Process, deliver: Callable[..., None], *arguments: Any) -> None:
        """What a dead process's machine sends on its behalf."""
        self._launch(self.way(dead.host, receiver.host), Piece(1, Pipe(), receiver, deliver, arguments))

    # ---------------------------------------------------------------------------------------------------- addresses

    def host_of(self, address: str) -> str:
        """The machine that last listened at an address."""
        return self._hosts.get(address, address.rpartition(":")[0])

    def listen(self, server: Server) -> None:
        """An address leads to that server from now on, also where it led to another machine before."""
        self.listening[server.address] = server
        self._hosts[server.address] = server.process.host

    def stop_listening(self, server: Server) -> None:
        """No new connections to it."""
        if self.listening.get(server.address) is server:
            del self.listening[server.address]
