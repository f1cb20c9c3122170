"""Stage 1: the vision tower alone learns to name what each quarter of the picture holds.

Trained together from nothing, tower and language model settle on colours and places and never
find the shapes; a tower that already knows them makes the rest easy. The labels are only a
ladder: the heads that read them are thrown away.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from demo_model.loop import Stage, train
from demo_model.pictures import Labels, as_model_input
from llava_grpc.demo.scenes import BACKGROUNDS, COLOURS, SHAPES

BATCH = 64

# Left and right quarters trade places in a mirrored picture.
_MIRRORED = [1, 0, 3, 2]


class QuarterNamer(nn.Module):
    """A tower with small heads over the mean of each quarter's patches."""

    def __init__(self, tower: nn.Module):
        super().__init__()
        self.tower = tower
        width = tower.config.hidden_size
        self.norm = nn.LayerNorm(width)
        self.shape = nn.Linear(width, len(SHAPES) + 1)
        self.colour = nn.Linear(width, len(COLOURS) + 1)
        self.background = nn.Linear(width, len(BACKGROUNDS))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores for shapes and colours by quarter, and for the background."""
        patches = self.norm(patch_features(self.tower, pixels))
        half = int(patches.shape[1] ** 0.5) // 2
        grid = patches.unflatten(1, (2, half, 2, half))
        quarters = grid.mean(dim=(2, 4)).flatten(1, 2)
        return self.shape(quarters), self.colour(quarters), self.background(quarters.mean(1))


def patch_features(tower: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """What the model's projector gets: the last layer's patches, without the class token."""
    return tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]


def train_tower(tower: nn.Module, pictures: torch.Tensor, labels: Labels, stage: Stage, device: torch.device) -> None:
    """Train the tower in place."""
    namer = QuarterNamer(tower).to(device)
    forward = torch.compile(namer) if stage.compiled else namer

    def step(generator: torch.Generator) -> tuple[torch.Tensor, str]:
        chosen = torch.randint(len(pictures), (BATCH,), generator=generator)
        batch, shapes, colours = pictures[chosen], labels.shapes[chosen], labels.colours[chosen]
        if torch.rand((), generator=generator) < 0.5:
            batch = batch.flip(-1)
            shapes, colours = shapes[:, _MIRRORED], colours[:, _MIRRORED]
        shapes, colours = shapes.to(device), colours.to(device)
        shape, colour, background = forward(as_model_input(batch, generator, device))
        loss = (
            cross_entropy(shape.flatten(0, 1), shapes.flatten())
            + 0.5 * cross_entropy(colour.flatten(0, 1), colours.flatten())
            + 0.2 * cross_entropy(background, labels.backgrounds[chosen].to(device))
        )
        right = (shape.argmax(-1) == shapes)[shapes > 0].float().mean()
        return loss, f"shapes {right:.1%}"

    train(stage, namer, step)
