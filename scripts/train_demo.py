"""Train the bundled demo model from nothing and write it where the package keeps it.

Three stages: the vision tower alone, then projector and language model with the tower frozen,
then everything together. Each keeps its state in the build folder: a run that was stopped
goes on where it was, and a stage that is done is not done again (`--fresh` forgets them all).
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from demo_model.checkpoint import build_model, build_processor, build_tokenizer, export  # noqa: E402
from demo_model.language import train_language  # noqa: E402
from demo_model.loop import Stage, progress_bar  # noqa: E402
from demo_model.pictures import Labels, load_or_draw  # noqa: E402
from demo_model.tower import train_tower  # noqa: E402

from llava_grpc.demo import MODEL_NAME, MODEL_PATH  # noqa: E402
from llava_grpc.demo.scenes import TRAINING_SEEDS, scene_from_seed  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    """The command line; the defaults make the bundled model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=40_000, help="how many to train on")
    parser.add_argument("--tower-steps", type=int, default=1500)
    parser.add_argument("--language-steps", type=int, default=1000)
    parser.add_argument("--together-steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the weights before training")
    parser.add_argument("--fresh", action="store_true", help="forget stages done before")
    parser.add_argument("--quick", action="store_true", help="a few steps of each, kept apart")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.pictures = 200
        arguments.tower_steps = arguments.language_steps = arguments.together_steps = 2
    return arguments


def main() -> None:
    """Train what is not trained yet and export the result."""
    arguments = parse_arguments()
    build = ROOT / "build" / ("demo-quick" if arguments.quick else "demo")
    # A quick run shows that the recipe works; its model must not replace the real one.
    destination = build / MODEL_NAME if arguments.quick else MODEL_PATH
    if arguments.fresh or arguments.quick:
        shutil.rmtree(build, ignore_errors=True)
    build.mkdir(parents=True, exist_ok=True)

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # torch.compile needs a C++ compiler on a CPU, and is not worth its wait for a few steps.
    compiled = not arguments.quick and (device.type == "cuda" or shutil.which("g++") is not None)

    def stage(name: str, steps: int, learning_rate: float, last_rate: float = 0.02) -> Stage:
        return Stage(name, steps, learning_rate, build, last_rate=last_rate, compiled=compiled)

    tokenizer = build_tokenizer()
    processor = build_processor(tokenizer)
    model = build_model(tokenizer).to(device)

    with progress_bar() as bar:
        task = bar.add_task("pictures", total=arguments.pictures, note="")
        report = lambda done: bar.update(task, completed=done)  # noqa: E731
        pictures = load_or_draw(arguments.pictures, build, report)
    labels = Labels.of([scene_from_seed(s) for s in TRAINING_SEEDS[: arguments.pictures]])

    def keep() -> None:
        export(model, processor, build / "latest")

    tower = stage("tower", arguments.tower_steps, 1e-3)
    # Ends fast, since the next stage goes on from here and slows down for both.
    language = stage("language", arguments.language_steps, 1.5e-3, last_rate=0.3)
    together = stage("together", arguments.together_steps, 8e-4)
    train_tower(model.model.vision_tower, pictures, labels, tower, device)
    train_language(model, tokenizer, pictures, language, device, tower_frozen=True, after_save=keep)
    train_language(model, tokenizer, pictures, together, device, tower_frozen=False, after_save=keep)
    export(model, processor, destination)
    print(f"written to {destination}")


if __name__ == "__main__":
    main()
