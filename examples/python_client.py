"""Ask a running fleet about a picture, from Python. Start one first: `llava-grpc up`."""

import asyncio
import sys

from llava_grpc import AsyncClient, Client
from llava_grpc.demo import SAMPLE
from llava_grpc.errors import LlavaGrpcError


def without_asyncio() -> None:
    """The answer as it comes, then a second question that refers to the first."""
    with Client() as client:
        print("models:", ", ".join(model.name for model in client.models()))
        for delta in client.generate(SAMPLE.question, SAMPLE.picture):
            print(delta.text, end="", flush=True)
        print()

        chat = client.chat(max_new_tokens=64)
        print(chat.say(SAMPLE.picture, "How many shapes are there?").text())
        print(chat.say("What colour is the background?").text())


async def with_asyncio() -> None:
    """Several questions at once, each within ten seconds."""
    questions = ["What is at the top left?", "What is at the top right?", "Is there a green star?"]
    async with AsyncClient(timeout=10) as client:
        answers = await asyncio.gather(*(client.ask(question, SAMPLE.picture) for question in questions))
    for question, answer in zip(questions, answers, strict=True):
        print(f"{question} {answer}")


if __name__ == "__main__":
    try:
        without_asyncio()
        asyncio.run(with_asyncio())
    except LlavaGrpcError as error:  # the cause, and what to do about it
        sys.exit(f"{error.reason}: {error}")
