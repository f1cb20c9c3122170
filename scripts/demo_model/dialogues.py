"""Training dialogues, many to a sequence: one beginning, several ways to go on.

A picture costs 64 positions and a question about it 20, so each picture is followed by as many
dialogues as fit, side by side: each sees the beginning and itself, never its neighbours. Most
hold one question. Where all questions about a picture stand in one dialogue, the model learns to
copy its own earlier answers and becomes bad at answering from the picture alone.
"""

import random
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from transformers import PreTrainedTokenizerFast

from demo_model import small_talk
from demo_model.checkpoint import PATCHES
from llava_grpc.demo.questions import Question, describe, description_request, questions
from llava_grpc.demo.scenes import Scene

LENGTH = 240
IGNORED = -100  # cross_entropy's own mark for "no target here"
PICTURE = "<image>\n"
FINDING = ("where", "how many", "is there")


@dataclass
class Sequence:
    """One beginning and its continuations, as they are laid out in one row of a batch."""

    ids: list[int]
    targets: list[int]  # the next token's id where the model is to say it
    branches: list[int]  # 0 for the beginning, then 1, 2, ...
    positions: list[int]
    pictures: list[int]  # which training pictures stand in it, in order
    length_of_beginning: int = field(init=False)

    def __post_init__(self):
        self.length_of_beginning = len(self.ids)

    def add(self, turns: list[tuple[list[int], list[int]]], pictures: tuple[int, ...] = ()) -> bool:
        """Add a dialogue of (asked, answered) turns; False when it does not fit."""
        size = sum(len(asked) + len(answered) for asked, answered in turns)
        if len(self.ids) + size > LENGTH:
            return False
        branch, position = self.branches[-1] + 1, self.length_of_beginning
        for asked, answered in turns:
            self.ids += asked + answered
            self.targets += [IGNORED] * (len(asked) - 1) + answered + [IGNORED]
        self.branches += [branch] * size
        self.positions += range(position, position + size)
        self.pictures += pictures
        return True


@dataclass(frozen=True)
class Batch:
    """Sequences side by side, padded to one length."""

    ids: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor  # (sequences, 1, length, length), true where a token may look
    positions: torch.Tensor
    pictures: torch.Tensor

    @classmethod
    def of(cls, sequences: list[Sequence], padding: int) -> "Batch":
        """Pad and stack; padding is a branch of its own, so nothing looks at it."""

        def stack(rows: list[list[int]], filler: int) -> torch.Tensor:
            return torch.tensor([row + [filler] * (LENGTH - len(row)) for row in rows])

        branches = stack([s.branches for s in sequences], -1)
        looks, seen = branches[:, :, None], branches[:, None, :]
        mask = ((looks == seen) | (seen == 0)).tril()
        return cls(
            ids=stack([s.ids for s in sequences], padding),
            targets=stack([s.targets for s in sequences], IGNORED),
            mask=mask[:, None],
            positions=stack([s.positions for s in sequences], 0),
            pictures=torch.tensor([number for s in sequences for number in s.pictures]),
        )


class DialogueWriter:
    """Writes seeded sequences about scenes, in the checkpoint's own template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._tokenizer = tokenizer
        self._encode_short = lru_cache(maxsize=50_000)(self._encode)

    def _encode(self, text: str) -> list[int]:
        text = text.replace("<image>", "<image>" * PATCHES)
        return self._tokenizer.encode(text, add_special_tokens=False)

    def write(self, scenes: list[Scene], numbers: list[int], rng: random.Random) -> Sequence:
        """A sequence about the first scene, or now and then about both, or about none."""
        kind = rng.random()
        if kind < 0.03:
            return self._without_picture(rng)
        if kind < 0.07:
            return self._two_pictures_at_once(scenes, numbers, rng)
        sequence = self._begin(PICTURE, numbers[:1], rng)
        if kind < 0.10:
            self._second_picture_later(sequence, scenes, numbers, rng)
        else:
            self._one_picture(sequence, scenes[0], rng)
        return sequence

    def _begin(self, pictures: str, numbers: list[int], rng: random.Random) -> Sequence:
        text = "<s>" if rng.random() < 0.97 else ""
        if rng.random() < 0.08:
            text += rng.choice(small_talk.SYSTEM_MESSAGES) + " "
        ids = self._encode_short(text + "USER: " + pictures)
        size = len(ids)
        return Sequence(ids[:], [IGNORED] * size, [0] * size, list(range(size)), list(numbers))

    def _turn(self, text: str, answer: str, opening: str = "") -> tuple[list[int], list[int]]:
        return (
            self._encode_short(f"{opening}{text} ASSISTANT: "),
            self._encode_short(f"{answer}</s>"),
        )

    def _one_picture(self, sequence: Sequence, scene: Scene, rng: random.Random) -> None:
        request = description_request(scene, rng)
        # Finding a place by what it holds takes longest to learn: those kinds come more often.
        found = [q for _ in range(2) for q in questions(scene, rng) if q.kind in FINDING]
        singles = _shuffled(questions(scene, rng) + found, rng)
        if rng.random() < 0.6:
            singles.insert(0, request)
        if rng.random() < 0.2:
            singles.insert(1, _talk(rng))
        if rng.random() < 0.25:
            several = rng.sample(singles, rng.choice((2, 2, 3)))
            first, *later = [(as_typed(question.text, rng), question.answer) for question in several]
            sequence.add([self._turn(*first), *(self._turn(*turn, "USER: ") for turn in later)])
        for question in singles:
            if not sequence.add([self._turn(as_typed(question.text, rng), question.answer)]):
                break

    def _second_picture_later(
        self, sequence: Sequence, scenes: list[Scene], numbers: list[int], rng: random.Random
    ) -> None:
        before, after = (rng.choice([description_request(scene, rng), *questions(scene, rng)]) for scene in scenes[:2])
        sequence.add(
            [
                self._turn(before.text, before.answer),
                self._turn(after.text, after.answer, "USER: " + PICTURE),
            ],
            pictures=(numbers[1],),
        )

    def _two_pictures_at_once(self, scenes: list[Scene], numbers: list[int], rng: random.Random) -> Sequence:
        sequence = self._begin(PICTURE * 2, numbers[:2], rng)
        request = rng.choice(
            (
                "Describe both pictures.",
                "Describe the pictures.",
                "What is in the pictures?",
                "Describe these images.",
                "What do you see?",
                "Describe the picture.",
                "Compare the pictures.",
            )
        )
        first, second = (describe(scene) for scene in scenes[:2])
        answer = f"First picture: {first} Second picture: {second}"
        sequence.add([self._turn(request, answer)])
        return sequence

    def _without_picture(self, rng: random.Random) -> Sequence:
        sequence = self._begin("", [], rng)
        while True:
            question = _talk(rng)
            if rng.random() < 0.4:
                scene = Scene(0, "white", (255, 255, 255), ())
                asked = rng.choice([description_request(scene, rng), *questions(scene, rng)])
                question = Question("no picture", asked.text, small_talk.NO_PICTURE)
            if not sequence.add([self._turn(as_typed(question.text, rng), question.answer)]):
                return sequence


def as_typed(text: str, rng: random.Random) -> str:
    """The text as people type it: now and then without capitals or a mark at its end."""
    if rng.random() < 0.12:
        text = text.lower()
    if rng.random() < 0.12:
        text = text.rstrip(".?!") or text
    return text


def _talk(rng: random.Random) -> Question:
    answer = rng.choice(tuple(small_talk.TALK))
    return Question("talk", rng.choice(small_talk.TALK[answer]), answer)


def _shuffled(items: list[Question], rng: random.Random) -> list[Question]:
    return rng.sample(items, len(items))
