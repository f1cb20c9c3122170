"""Pictures to ids when threads meet, with a model and a processor that do as they are told."""

import io
import threading
from types import SimpleNamespace

import pytest
import torch
from PIL import Image as Pillow

from llava_grpc.core.prompt import Image
from llava_grpc.engines.pseudo_tokens import PictureEmbedding
from llava_grpc.engines.vision import PictureEncoder

IMAGE_ID = 3


class Eyes:
    """A processor that gives every picture two features, and the model that makes them."""

    image_token = "<image>"

    def __init__(self):
        self.prepared = threading.Semaphore(0)
        self.seeing, self.go_on = threading.Event(), threading.Event()
        self.fault: Exception | None = None

    def __call__(self, images, **options):
        self.prepared.release()
        return {"input_ids": torch.tensor([[IMAGE_ID, IMAGE_ID]]), "pixel_values": torch.zeros(1, 3)}

    def get_image_features(self, pixel_values, return_dict):
        self.seeing.set()
        assert self.go_on.wait(10)
        if self.fault:
            fault, self.fault = self.fault, None
            raise fault
        return SimpleNamespace(pooler_output=[torch.ones(2, 4)])


def encoder(eyes: Eyes) -> PictureEncoder:
    embedding = PictureEmbedding(torch.nn.Embedding(8, 4), vocabulary=8, rows=4, width=4)
    return PictureEncoder(eyes, eyes, embedding, IMAGE_ID, lambda: None, 10_000)


def picture(colour: str) -> Image:
    buffer = io.BytesIO()
    Pillow.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return Image(data=buffer.getvalue())


def encoding(pictures: PictureEncoder, image: Image, results: list) -> threading.Thread:
    def run() -> None:
        try:
            results.append(pictures.encode([image], fits=lambda ids: None))
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_picture_whose_encoding_fails_for_one_is_encoded_for_the_other():
    """The other comes while the first one's rows are reserved, and is between looking them up and its own turn."""
    eyes = Eyes()
    eyes.fault = RuntimeError("out of memory")
    pictures = encoder(eyes)
    first: list = []
    second: list = []
    one = encoding(pictures, picture("red"), first)
    assert eyes.seeing.wait(10)

    find = pictures.table.find

    def find_then_the_first_fails(key):
        held = find(key)
        pictures.table.find = find
        eyes.go_on.set()
        one.join()
        return held

    pictures.table.find = find_then_the_first_fails
    encoding(pictures, picture("red"), second).join()
    assert isinstance(first[0], RuntimeError)
    assert second[0][0].held.layout == (8, 9)
    pictures.release(second[0])
    assert [entry.users for entry in pictures.table._entries.values()] == [0]


def test_a_picture_is_prepared_while_another_is_seen():
    eyes = Eyes()
    pictures = encoder(eyes)
    results: list = []
    threads = [encoding(pictures, picture("red"), results)]
    assert eyes.seeing.wait(10)
    threads.append(encoding(pictures, picture("blue"), results))
    assert eyes.prepared.acquire(timeout=5)
    both = eyes.prepared.acquire(timeout=5)
    eyes.go_on.set()
    for thread in threads:
        thread.join()
    assert both
    assert sorted(found[0].held.rows.start for found in results) == [0, 2]


def test_a_picture_by_digest_waits_for_the_one_who_encodes_it():
    import hashlib

    eyes = Eyes()
    pictures = encoder(eyes)
    results: list = []
    threads = [encoding(pictures, picture("red"), results)]
    assert eyes.seeing.wait(10)
    digest = hashlib.sha256(picture("red").data).digest()
    threads.append(encoding(pictures, Image(sha256=digest), results))
    with pytest.raises(TimeoutError):
        wait_for_end(threads[1])
    eyes.go_on.set()
    for thread in threads:
        thread.join()
    assert results[0] == results[1]


def wait_for_end(thread: threading.Thread) -> None:
    thread.join(0.1)
    if thread.is_alive():
        raise TimeoutError
