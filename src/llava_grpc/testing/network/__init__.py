"""A network in memory, in virtual time: grpc.aio channels and servers without a socket, and what can befall them.

    wire      machines, the ways between them, what is on its way; partitions, delays, broken connections
    channels  a channel: connecting, connected, broken, connecting again
    calls     a call as its caller holds it
    servers   a server, and a call as its handler holds it
    network   all that, as nodes see it

It behaves as gRPC was measured to (docs/design.md), as far as this project's nodes can tell. It leaves out what they do
not use (compression, credentials, interceptors) and flow control: what is written is taken.
"""

from llava_grpc.testing.network.network import Network

__all__ = ["Network"]
