"""Draw the bundled sample pictures again, from seeds that no training has seen."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from llava_grpc.demo import PICTURES_PATH
from llava_grpc.demo.questions import describe
from llava_grpc.demo.scenes import SAMPLE_SEEDS, draw, scene_from_seed

# Large enough for a person to look at; the model's processor makes them small again.
SIDE = 256

SAMPLES = {
    "four-shapes": SAMPLE_SEEDS[45],
    "two-crosses": SAMPLE_SEEDS[44],
    "three-colours": SAMPLE_SEEDS[16],
    "stars-and-circles": SAMPLE_SEEDS[25],
    "one-heart": SAMPLE_SEEDS[10],
    "brown-ground": SAMPLE_SEEDS[29],
}

if __name__ == "__main__":
    PICTURES_PATH.mkdir(exist_ok=True)
    for name, seed in SAMPLES.items():
        scene = scene_from_seed(seed)
        draw(scene, SIDE).save(PICTURES_PATH / f"{name}.png", optimize=True)
        print(f"{name}: {describe(scene)}")
