"""Training pictures in bulk: drawn once, kept as bytes, labelled for the vision tower."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from llava_grpc.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    SHAPES,
    TRAINING_SEEDS,
    Scene,
    draw,
    scene_from_seed,
)

_CHUNK = 500


def load_or_draw(count: int, folder: Path, report=lambda done: None) -> torch.Tensor:
    """The pictures of the first `count` training seeds, as (count, 3, side, side) bytes."""
    path = folder / f"pictures-{count}.npy"
    if not path.exists():
        chunks = []
        for chunk in _draw_chunks(count):
            chunks.append(chunk)
            report(sum(map(len, chunks)))
        np.save(path, np.concatenate(chunks))
    report(count)
    return torch.from_numpy(np.load(path))


def _draw_chunks(count: int) -> Iterator[np.ndarray]:
    starts = range(0, count, _CHUNK)
    if len(starts) == 1:
        yield _draw_chunk(count, 0)
        return
    # Spawned, since this process has threads already, which a fork would tear apart.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        yield from pool.map(partial(_draw_chunk, count), starts)


def _draw_chunk(count: int, start: int) -> np.ndarray:
    pictures = [np.asarray(draw(scene_from_seed(seed))) for seed in TRAINING_SEEDS[start : min(start + _CHUNK, count)]]
    return np.stack(pictures).transpose(0, 3, 1, 2)


def as_model_input(pictures: torch.Tensor, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Normalised as the processor does it, with a little noise, as a camera or a JPEG adds."""
    pixels = pictures.float() / 127.5 - 1
    strength = 0.06 * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    return (pixels + strength * torch.randn(pixels.shape, generator=generator)).to(device)


@dataclass(frozen=True)
class Labels:
    """What each quarter holds, as indices; 0 is nothing. And the background's index."""

    shapes: torch.Tensor  # (scenes, quarters)
    colours: torch.Tensor  # (scenes, quarters)
    backgrounds: torch.Tensor  # (scenes,)

    @classmethod
    def of(cls, scenes: list[Scene]) -> "Labels":
        """The labels of these scenes, in their order."""
        shapes = {name: index for index, name in enumerate(SHAPES, 1)}
        colours = {name: index for index, name in enumerate(COLOURS, 1)}
        backgrounds = {name: index for index, name in enumerate(BACKGROUNDS)}
        quarters = [[scene.at(place) for place in PLACES] for scene in scenes]
        return cls(
            torch.tensor([[shapes[f.shape] if f else 0 for f in four] for four in quarters]),
            torch.tensor([[colours[f.colour] if f else 0 for f in four] for four in quarters]),
            torch.tensor([backgrounds[scene.background] for scene in scenes]),
        )
