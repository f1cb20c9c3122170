"""Measure the demo model: exact match on pictures and questions it has never seen.

Half are descriptions, half questions spread evenly over the kinds. The same questions are asked
again about a plain grey picture: what is still right then was guessed, not seen.
The last line printed is one JSON object.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForImageTextToText, AutoProcessor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from llava_grpc.demo import MODEL_PATH
from llava_grpc.demo.questions import (
    KINDS,
    Question,
    description_request,
    questions,
)
from llava_grpc.demo.scenes import (
    EVALUATION_SEEDS,
    PICTURE_SIDE,
    draw,
    scene_from_seed,
)

BATCH = 50


def fresh_items(count: int) -> list[tuple[Image.Image, Question]]:
    """Pictures and questions from seeds kept out of training, one question to a picture."""
    items = []
    for index, seed in enumerate(EVALUATION_SEEDS[:count]):
        scene = scene_from_seed(seed)
        question = questions(scene)[index // 2 % len(KINDS)] if index % 2 else description_request(scene)
        # Some as small as the model sees them, some large as people send them.
        side = PICTURE_SIDE * (1, 2, 4, 5)[index % 4]
        items.append((draw(scene, side), question))
    return items


class Examinee:
    """The checkpoint in a folder, answering questions in batches."""

    def __init__(self, folder: Path):
        self._processor = AutoProcessor.from_pretrained(folder)
        self._model = AutoModelForImageTextToText.from_pretrained(folder).eval()

    def answers(self, items: list[tuple[Image.Image, Question]]) -> list[str]:
        """Greedy answers, in the items' order."""
        texts = []
        for start in range(0, len(items), BATCH):
            texts += self._answer_batch(items[start : start + BATCH])
        return texts

    def _answer_batch(self, items: list[tuple[Image.Image, Question]]) -> list[str]:
        conversations = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": picture},
                        {"type": "text", "text": question.text},
                    ],
                }
            ]
            for picture, question in items
        ]
        inputs = self._processor.apply_chat_template(
            conversations,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            processor_kwargs={"padding": True},
        )
        output = self._model.generate(**inputs, do_sample=False, max_new_tokens=80)
        answered = output[:, inputs["input_ids"].shape[1] :]
        return self._processor.batch_decode(answered, skip_special_tokens=True)


def main() -> None:
    """Ask, count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL_PATH)
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--wrong", action="store_true", help="print the answers that are wrong")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    began = time.perf_counter()
    examinee = Examinee(arguments.model)
    items = fresh_items(arguments.items)
    grey = Image.new("RGB", (PICTURE_SIDE, PICTURE_SIDE), (128, 128, 128))
    seen = examinee.answers(items)
    guessed = examinee.answers([(grey, question) for _, question in items])

    asked, right, lucky = Counter(), Counter(), Counter()
    for (_, question), answer, guess in zip(items, seen, guessed, strict=True):
        for kind in (question.kind, "all"):
            asked[kind] += 1
            right[kind] += answer == question.answer
            lucky[kind] += guess == question.answer
        if arguments.wrong and answer != question.answer:
            print(f"{question.text}\n  right: {question.answer}\n  said:  {answer}")

    table = Table("kind", "asked", "exactly right", "with a grey picture")
    for kind in ("describe", *KINDS, "all"):
        shares = (f"{counted[kind] / max(1, asked[kind]):.1%}" for counted in (right, lucky))
        table.add_row(kind, str(asked[kind]), *shares)
    Console().print(table)
    summary = {
        "items": len(items),
        "exact": right["all"] / len(items),
        "grey": lucky["all"] / len(items),
        "by_kind": {kind: right[kind] / asked[kind] for kind in asked if kind != "all"},
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
