"""One training loop for every stage: warm-up, cosine, clipping, progress, and going on later.

A batch is drawn from a random source seeded by its step alone, so a stage that was stopped and
goes on from its saved state sees what it would have seen.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

# Computes the loss of one step and names what to show beside the bar.
Step = Callable[[torch.Generator], tuple[torch.Tensor, str]]


@dataclass(frozen=True)
class Stage:
    """One stage of training: how long, how fast, and where its state is kept."""

    name: str
    steps: int
    learning_rate: float
    folder: Path
    warm_up: int = 100
    weight_decay: float = 0.02
    last_rate: float = 0.02  # the learning rate at the end, as a fraction of the highest
    save_every: int = 200
    compiled: bool = True  # torch.compile: twice as fast on a CPU, but half a minute to begin

    @property
    def state_path(self) -> Path:
        """The saved state: finished, or to go on from."""
        return self.folder / f"{self.name}.pt"

    def rate_at(self, step: int) -> float:
        """The learning rate, as a fraction of the highest."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.last_rate + (1 - self.last_rate) * 0.5 * (1 + math.cos(math.pi * done))


def progress_bar() -> Progress:
    """The bar that every stage shows."""
    return Progress(
        TextColumn("{task.description:>12}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )


def train(stage: Stage, module: nn.Module, step: Step, after_save: Callable[[], None] = lambda: None) -> None:
    """Train those parameters of the module that require gradients, from saved state if any."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=stage.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=stage.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, stage.rate_at)
    first = 0
    if stage.state_path.exists():
        state = torch.load(stage.state_path, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]

    with progress_bar() as bar:
        task = bar.add_task(stage.name, total=stage.steps, completed=first, note="")
        for number in range(first, stage.steps):
            loss, note = step(torch.Generator().manual_seed(number))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            bar.update(task, advance=1, note=f"loss {loss.item():.4f} {note}")
            if (number + 1) % stage.save_every == 0 or number + 1 == stage.steps:
                state = {
                    "module": module.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "step": number + 1,
                }
                torch.save(state, stage.state_path)
                after_save()
