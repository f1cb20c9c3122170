"""Small synthetic scenes: up to four coloured shapes, one in each quarter of a plain picture.

A scene is a value made from its seed alone, so a picture, its description and its answers can
be made again anywhere. Nothing here needs torch. Three ranges of seeds never meet: the model is
trained on the first, measured on the second, and the bundled pictures come from the third.
"""

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]

TRAINING_SEEDS = range(1_000_000_000)
EVALUATION_SEEDS = range(1_000_000_000, 2_000_000_000)
SAMPLE_SEEDS = range(2_000_000_000, 3_000_000_000)

PICTURE_SIDE = 64

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")

COLOURS: dict[str, Rgb] = {
    "red": (220, 30, 35),
    "orange": (250, 145, 20),
    "yellow": (250, 230, 40),
    "green": (35, 160, 60),
    "blue": (40, 75, 225),
    "purple": (140, 45, 180),
}

BACKGROUNDS: dict[str, Rgb] = {
    "white": (248, 248, 248),
    "black": (16, 16, 16),
    "grey": (128, 128, 128),
    "pink": (252, 190, 208),
    "brown": (110, 72, 45),
}

# Each quarter's centre, in fractions of the picture's side; in reading order.
PLACES: dict[str, tuple[float, float]] = {
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
}

# How often a scene holds 0, 1, 2, 3 or 4 figures.
COUNT_WEIGHTS = (3, 22, 25, 25, 25)


@dataclass(frozen=True)
class Figure:
    """One shape: what it is called, and how exactly it is drawn."""

    shape: str
    colour: str
    place: str
    rgb: Rgb
    centre: tuple[float, float]  # fractions of the picture's side
    radius: float  # likewise
    turn: float  # radians


@dataclass(frozen=True)
class Scene:
    """A plain background and the figures on it, in reading order."""

    seed: int
    background: str
    background_rgb: Rgb
    figures: tuple[Figure, ...]

    def at(self, place: str) -> Figure | None:
        """The figure in that quarter, if there is one."""
        return next((figure for figure in self.figures if figure.place == place), None)


def scene_from_seed(seed: int) -> Scene:
    """The scene that this seed stands for, always the same one."""
    rng = random.Random(seed)
    background = rng.choice(tuple(BACKGROUNDS))
    count = rng.choices(range(len(COUNT_WEIGHTS)), COUNT_WEIGHTS)[0]
    places = rng.sample(tuple(PLACES), count)
    figures = tuple(_figure(rng, place) for place in PLACES if place in places)
    return Scene(seed, background, _near(rng, BACKGROUNDS[background], 7), figures)


def _figure(rng: random.Random, place: str) -> Figure:
    colour = rng.choice(tuple(COLOURS))
    x, y = PLACES[place]
    return Figure(
        shape=rng.choice(SHAPES),
        colour=colour,
        place=place,
        rgb=_near(rng, COLOURS[colour], 16),
        centre=(x + rng.uniform(-0.045, 0.045), y + rng.uniform(-0.045, 0.045)),
        radius=rng.uniform(0.125, 0.19),
        turn=rng.uniform(-0.2, 0.2),
    )


def _near(rng: random.Random, rgb: Rgb, spread: int) -> Rgb:
    red, green, blue = (min(255, max(0, value + rng.randint(-spread, spread))) for value in rgb)
    return red, green, blue


def draw(scene: Scene, side: int = PICTURE_SIDE) -> Image.Image:
    """The scene as a square picture, smooth at the edges."""
    # Drawn larger and scaled down with the filter that the model's own processor uses, so that
    # a small picture drawn here and a large one resized there look alike to the model.
    canvas_side = side * max(2, 256 // side)
    picture = Image.new("RGB", (canvas_side, canvas_side), scene.background_rgb)
    pen = ImageDraw.Draw(picture)
    for figure in scene.figures:
        pen.polygon([(x * canvas_side, y * canvas_side) for x, y in _outline(figure)], figure.rgb)
    return picture.resize((side, side), Image.Resampling.BICUBIC)


def _outline(figure: Figure) -> list[tuple[float, float]]:
    cosine, sine = math.cos(figure.turn), math.sin(figure.turn)
    centre_x, centre_y = figure.centre
    return [
        (
            centre_x + figure.radius * (x * cosine - y * sine),
            centre_y + figure.radius * (x * sine + y * cosine),
        )
        for x, y in OUTLINES[figure.shape]
    ]


def _round_the_clock(points: int, radii: tuple[float, ...]) -> list[tuple[float, float]]:
    """Points evenly around the centre, the first straight up, their radii taken in turn."""
    return [
        (
            radii[i % len(radii)] * math.sin(2 * math.pi * i / points),
            -radii[i % len(radii)] * math.cos(2 * math.pi * i / points),
        )
        for i in range(points)
    ]


def _heart() -> list[tuple[float, float]]:
    angles = [2 * math.pi * i / 40 for i in range(40)]
    return [
        (
            math.sin(a) ** 3,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16,
        )
        for a in angles
    ]


def _cross() -> list[tuple[float, float]]:
    arm = 0.34  # half an arm's width
    corners = [(arm, -arm), (arm, -1.0), (-arm, -1.0)]
    outline = []
    for _ in range(4):
        outline += corners
        corners = [(y, -x) for x, y in corners]
    return outline


# Every shape's outline around (0, 0), with radius 1 and y pointing down.
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "circle": _round_the_clock(40, (0.95,)),
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)],
    "star": _round_the_clock(10, (1.1, 0.45)),
    "cross": _cross(),
    "heart": _heart(),
}
