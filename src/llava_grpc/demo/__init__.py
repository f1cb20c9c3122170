"""The bundled model that really sees, its pictures, and where they lie.

Importing this package loads neither torch nor pillow: `llava-grpc --help` stays instant.
"""

from dataclasses import dataclass
from pathlib import Path

MODEL_NAME = "llava-demo"
MODEL_PATH = Path(__file__).parent / MODEL_NAME
PICTURES_PATH = Path(__file__).parent / "pictures"


@dataclass(frozen=True)
class Sample:
    """A picture with a question whose answer is known."""

    picture: Path
    question: str
    answer: str


# What `llava-grpc up` asks a fresh fleet, to prove that it sees and not only answers.
SAMPLE = Sample(
    picture=PICTURES_PATH / "four-shapes.png",
    question="Describe the picture.",
    answer=(
        "There are four shapes on a white background: an orange triangle at the top left, "
        "a purple circle at the top right, a red cross at the bottom left "
        "and a blue square at the bottom right."
    ),
)


def sample_pictures() -> list[Path]:
    """The bundled pictures, in a fixed order."""
    return sorted(PICTURES_PATH.glob("*.png"))
