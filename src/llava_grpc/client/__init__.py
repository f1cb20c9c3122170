"""The Python client: ask a fleet, or a single worker, about text and pictures.

    async with AsyncClient() as client:                         with Client() as client:
        stream = client.generate("What is this?", "cat.png")        for delta in client.generate("What is this?", ...):
        async for delta in stream:                                      print(delta.text, end="", flush=True)
            print(delta.text, end="", flush=True)

`AsyncClient` is the real one, `Client` its twin for code without asyncio: same names, same options, same errors
(`llava_grpc.errors`). A conversation is turns, made by `system(...)`, `user(...)` and `assistant(...)`, or kept by
`client.chat()`. With several addresses, `Client("one:21001,other:21001")`, a client goes to the next where one fails,
also in mid-answer.
"""

from llava_grpc.client.aio import AsyncClient
from llava_grpc.client.chat import Chat
from llava_grpc.client.fleet import ServedModel, WorkerView
from llava_grpc.client.pictures import Picture, by_digest, picture
from llava_grpc.client.prompts import GenerateOptions, assistant, system, user
from llava_grpc.client.records import DecisionView, PieceView, RecordView
from llava_grpc.client.stream import AnswerStream
from llava_grpc.client.sync import Answer, Client

__all__ = [
    "Answer",
    "AnswerStream",
    "AsyncClient",
    "Chat",
    "Client",
    "DecisionView",
    "GenerateOptions",
    "Picture",
    "PieceView",
    "RecordView",
    "ServedModel",
    "WorkerView",
    "assistant",
    "by_digest",
    "picture",
    "system",
    "user",
]
