"""What can be said and asked about a scene, in sentences that the scene alone decides.

Every answer follows from the scene and the question's words, so an answer is right exactly when
it is equal to the one given here.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from llava_grpc.demo.scenes import COLOURS, PLACES, SHAPES, Figure, Scene

NUMBERS = ("no", "one", "two", "three", "four")

# The kinds of question beside "describe".
KINDS = ("colour", "where", "how many", "is there", "what", "background")

DESCRIPTION_REQUESTS = (
    "Describe the picture.",
    "Describe this image.",
    "Describe what you see.",
    "What is in the picture?",
    "What is in this image?",
    "What do you see?",
    "What does the picture show?",
)


@dataclass(frozen=True)
class Question:
    """One question about one scene, with its only right answer."""

    kind: str
    text: str
    answer: str


def describe(scene: Scene) -> str:
    """The whole scene in one sentence."""
    ground = f"{_article(scene.background)} {scene.background} background"
    if not scene.figures:
        return f"There are no shapes, only {ground}."
    figures = _listed([f"{_named(figure)} at the {figure.place}" for figure in scene.figures])
    return f"There {_counted(len(scene.figures), 'shape')} on {ground}: {figures}."


def description_request(scene: Scene, rng: random.Random | None = None) -> Question:
    """One of the ways to ask for the description."""
    rng = rng or random.Random(scene.seed)
    return Question("describe", rng.choice(DESCRIPTION_REQUESTS), describe(scene))


def questions(scene: Scene, rng: random.Random | None = None) -> list[Question]:
    """Questions about the scene, of every kind, in the order of `KINDS`.

    The same ones each time, unless a random source is given to draw others from.
    """
    rng = rng or random.Random(scene.seed)
    return [
        _colour_question(scene, rng),
        _where_question(scene, rng),
        _how_many_question(scene, rng),
        _is_there_question(scene, rng),
        _what_question(scene, rng),
        _background_question(scene, rng),
    ]


@dataclass(frozen=True)
class _Sought:
    """What a question is about: a shape, a colour or both."""

    shape: str | None
    colour: str | None

    def among(self, figures: Sequence[Figure]) -> list[Figure]:
        return [
            figure for figure in figures if self.shape in (None, figure.shape) and self.colour in (None, figure.colour)
        ]

    @property
    def noun(self) -> str:
        return f"{self.colour or ''} {self.shape or 'shape'}".strip()


def _sought(scene: Scene, rng: random.Random, absent: float) -> _Sought:
    """Something to ask for; with the chance `absent`, something that may not be there."""
    figure = rng.choice(scene.figures) if scene.figures else None
    shape = figure.shape if figure else rng.choice(SHAPES)
    colour = figure.colour if figure else rng.choice(tuple(COLOURS))
    if rng.random() < absent:
        # A near miss: one of the two is usually still in the picture.
        if rng.random() < 0.5:
            shape = rng.choice(SHAPES)
        else:
            colour = rng.choice(tuple(COLOURS))
    form = rng.random()
    if form < 0.45:
        return _Sought(shape, None)
    return _Sought(shape, colour) if form < 0.8 else _Sought(None, colour)


def _colour_question(scene: Scene, rng: random.Random) -> Question:
    word = rng.choice(("colour", "colour", "color"))
    if scene.figures and rng.random() < 0.4:
        figure = rng.choice(scene.figures)
        where = f"the shape at the {figure.place}"
        return Question("colour", f"What {word} is {where}?", f"The shape is {figure.colour}.")
    sought = _Sought(_sought(scene, rng, absent=0.15).shape or rng.choice(SHAPES), None)
    found = sought.among(scene.figures)
    answer = f"The {sought.noun} is {found[0].colour}." if len(found) == 1 else None
    return Question("colour", f"What {word} is the {sought.noun}?", answer or _none_or_several(sought, found))


def _where_question(scene: Scene, rng: random.Random) -> Question:
    sought = _sought(scene, rng, absent=0.15)
    found = sought.among(scene.figures)
    answer = f"The {sought.noun} is at the {found[0].place}." if len(found) == 1 else None
    return Question("where", f"Where is the {sought.noun}?", answer or _none_or_several(sought, found))


def _how_many_question(scene: Scene, rng: random.Random) -> Question:
    sought = _sought(scene, rng, absent=0.3) if rng.random() < 0.75 else _Sought(None, None)
    found = sought.among(scene.figures)
    ending = rng.choice((" are there", " are in the picture", " do you see"))
    return Question(
        "how many",
        f"How many {_plural(sought.noun)}{ending}?",
        f"There {_counted(len(found), sought.noun)}.",
    )


def _is_there_question(scene: Scene, rng: random.Random) -> Question:
    sought = _sought(scene, rng, absent=0.75)
    found = sought.among(scene.figures)
    if not found:
        answer = f"No, there is no {sought.noun}."
    elif len(found) == 1:
        answer = f"Yes, there is {_named(found[0])} at the {found[0].place}."
    else:
        answer = f"Yes, there {_counted(len(found), sought.noun)}."
    text = f"Is there {_article(sought.noun)} {sought.noun}?"
    return Question("is there", text, answer)


def _what_question(scene: Scene, rng: random.Random) -> Question:
    place = rng.choice(tuple(PLACES))
    if scene.figures and rng.random() < 0.5:
        place = rng.choice(scene.figures).place
    figure = scene.at(place)
    text = rng.choice((f"What is at the {place}?", f"Which shape is at the {place}?"))
    seen = _named(figure) if figure else "nothing"
    return Question("what", text, f"There is {seen} at the {place}.")


def _background_question(scene: Scene, rng: random.Random) -> Question:
    word = rng.choice(("colour", "colour", "color"))
    return Question(
        "background",
        f"What {word} is the background?",
        f"The background is {scene.background}.",
    )


def _none_or_several(sought: _Sought, found: list[Figure]) -> str:
    """The answer to a question about the one such figure, when there is none or more than one."""
    if not found:
        return f"There is no {sought.noun}."
    return f"There {_counted(len(found), sought.noun)}: " + (
        _listed([f"{_named(figure)} at the {figure.place}" for figure in found]) + "."
    )


def _named(figure: Figure) -> str:
    return f"{_article(figure.colour)} {figure.colour} {figure.shape}"


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def _counted(count: int, noun: str) -> str:
    return f"is one {noun}" if count == 1 else f"are {NUMBERS[count]} {_plural(noun)}"


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
