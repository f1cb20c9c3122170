"""Scenes are values of their seeds, and answers are true of their scenes."""

import random
import re
from dataclasses import replace
from itertools import pairwise

import pytest

from llava_grpc.demo.questions import KINDS, describe, description_request, questions
from llava_grpc.demo.scenes import (
    COLOURS,
    EVALUATION_SEEDS,
    PLACES,
    SAMPLE_SEEDS,
    SHAPES,
    TRAINING_SEEDS,
    Scene,
    draw,
    scene_from_seed,
)

SCENES = [scene_from_seed(seed) for seed in TRAINING_SEEDS[:200]]


def test_a_seed_is_always_the_same_scene_picture_and_questions():
    seed = EVALUATION_SEEDS[7]
    once, again = scene_from_seed(seed), scene_from_seed(seed)
    assert once == again
    assert draw(once).tobytes() == draw(again).tobytes()
    assert questions(once) == questions(again)
    assert description_request(once) == description_request(again)


def test_seeds_for_training_evaluation_and_samples_never_meet():
    ranges = sorted((r.start, r.stop) for r in (TRAINING_SEEDS, EVALUATION_SEEDS, SAMPLE_SEEDS))
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))


def test_a_known_scene_reads_as_it_should():
    assert describe(scene_from_seed(SAMPLE_SEEDS[44])) == (
        "There are two shapes on a pink background: "
        "a yellow cross at the top left and a purple cross at the bottom right."
    )


@pytest.mark.parametrize("side", [64, 256])
def test_every_figure_shows_its_own_colour_at_its_centre(side):
    for scene in SCENES[:20]:
        picture = draw(scene, side)
        assert picture.size == (side, side)
        for figure in scene.figures:
            x, y = (round(part * side) for part in figure.centre)
            seen = picture.getpixel((x, y))
            assert isinstance(seen, tuple)
            assert all(abs(a - b) <= 12 for a, b in zip(seen, figure.rgb, strict=True)), figure


@pytest.mark.parametrize("scene", SCENES[:60], ids=lambda scene: str(scene.seed))
def test_a_description_names_every_figure_and_nothing_else(scene: Scene):
    said = re.findall(r"an? (\w+) (\w+) at the (\w+ \w+)", describe(scene))
    assert said == [(f.colour, f.shape, f.place) for f in scene.figures]
    assert f"{scene.background} background" in describe(scene)


def test_questions_come_one_of_each_kind():
    for scene in SCENES:
        assert tuple(question.kind for question in questions(scene)) == KINDS


def test_counts_and_presence_are_true_of_the_scene():
    numbers = {"no": 0, "one": 1, "two": 2, "three": 3, "four": 4}
    rng = random.Random(1)
    for scene in SCENES:
        for question in questions(scene, rng):
            asked_for = {name for name in (*SHAPES, *COLOURS) if name in question.text}
            found = [figure for figure in scene.figures if asked_for <= {figure.shape, figure.colour}]
            if question.kind == "how many":
                assert numbers[question.answer.split()[2]] == len(found), question
            elif question.kind == "is there":
                assert question.answer.startswith("Yes") == bool(found), question
            elif question.kind == "where" and len(found) == 1:
                assert found[0].place in question.answer, question


def test_articles_agree_with_the_word_that_follows():
    for scene in SCENES:
        for question in (description_request(scene), *questions(scene)):
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", f"{question.text} {question.answer}")


def test_only_one_figure_stands_in_a_quarter():
    for scene in SCENES:
        places = [figure.place for figure in scene.figures]
        assert places == [place for place in PLACES if place in places]


def test_an_empty_scene_is_said_to_be_empty():
    empty = replace(SCENES[0], background="grey", figures=())
    assert describe(empty) == "There are no shapes, only a grey background."
