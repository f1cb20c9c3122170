"""Stages 2 and 3: projector and language model learn to speak of what the tower sees.

First with the tower frozen, so that the language model's first steps do not spoil it.
"""

import random

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from demo_model.dialogues import IGNORED, Batch, DialogueWriter
from demo_model.loop import Stage, train
from demo_model.pictures import as_model_input
from demo_model.tower import patch_features
from llava_grpc.demo.scenes import TRAINING_SEEDS, scene_from_seed

BATCH = 32


class Speaker(nn.Module):
    """The whole model, fed with dialogues laid side by side under a mask of their own."""

    def __init__(self, llava: LlavaForConditionalGeneration, compiled: bool):
        super().__init__()
        self.llava = llava
        self._see = torch.compile(patch_features, dynamic=True) if compiled else patch_features
        self._read = torch.compile(self._read_plain) if compiled else self._read_plain

    def forward(self, pixels: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The mean loss over the tokens that the model is to say."""
        device = pixels.device
        llava, ids = self.llava.model, batch.ids.to(device)
        embeddings = llava.get_input_embeddings()(ids)
        seen = llava.multi_modal_projector(self._see(llava.vision_tower, pixels))
        places = (ids == self.llava.config.image_token_id)[..., None]
        embeddings = embeddings.masked_scatter(places, seen)
        hidden = self._read(embeddings, batch.mask.to(device), batch.positions.to(device))
        targets = batch.targets.to(device)
        spoken = targets != IGNORED
        return cross_entropy(self.llava.lm_head(hidden[spoken]), targets[spoken])

    def _read_plain(self, embeddings: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.llava.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state


def train_language(
    llava: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    pictures: torch.Tensor,
    stage: Stage,
    device: torch.device,
    *,
    tower_frozen: bool,
    after_save=lambda: None,
) -> None:
    """Train the model in place, with or without its tower."""
    llava.model.vision_tower.requires_grad_(not tower_frozen)
    speaker = Speaker(llava, stage.compiled).to(device)
    writer = DialogueWriter(tokenizer)

    def step(generator: torch.Generator) -> tuple[torch.Tensor, str]:
        rng = random.Random(f"{stage.name} {generator.initial_seed()}")
        sequences = []
        for _ in range(BATCH):
            numbers = [rng.randrange(len(pictures)) for _ in range(2)]
            scenes = [scene_from_seed(TRAINING_SEEDS[number]) for number in numbers]
            sequences.append(writer.write(scenes, numbers, rng))
        batch = Batch.of(sequences, tokenizer.pad_token_id)
        pixels = as_model_input(pictures[batch.pictures], generator, device)
        return speaker(pixels, batch), ""

    train(stage, speaker, step, after_save)
    llava.model.vision_tower.requires_grad_(True)
