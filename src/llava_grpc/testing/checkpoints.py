"""Small LLaVA checkpoints with random weights, of any geometry: for tests and benchmarks, made in a second.

Their answers mean nothing, but they are answers: what holds for them holds for trained ones of the same kind.
torch and transformers are imported when a checkpoint is built, not before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CORPUS = (
    "USER: \nWhat is in the picture? ASSISTANT: A red circle and two blue squares, one of them large.</s>",
    "USER: \nHow many shapes are there? ASSISTANT: There are three shapes in the picture.</s>",
    "USER: \nDescribe the picture. ASSISTANT: The picture shows a green triangle left of a yellow star.</s>",
    "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs.",
)
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<image>")
TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- {'system': '', 'user': 'USER: ', 'assistant': 'ASSISTANT: '}[message['role']] -}}
{%- for part in message['content'] -%}
{{- '<image>\\n' if part['type'] == 'image' else part['text'] -}}
{%- endfor -%}
{{- eos_token if message['role'] == 'assistant' else ' ' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif -%}
"""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What a checkpoint looks like. The defaults are the model of `benchmarks/bench_engine.py`.

    `family` is "llava" or "llava_next"; `template` may be empty; the sides are pixels.
    """

    family: str = "llava"
    hidden: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 8
    intermediate: int = 768
    vocabulary: int = 2000
    context: int = 2048
    vision_hidden: int = 128
    vision_layers: int = 4
    vision_heads: int = 4
    picture_side: int = 112
    patch_side: int = 14
    template: str = TEMPLATE
    picture_weight: float = 4.0
    seed: int = 0

    @property
    def patches(self) -> int:
        """Features of one square picture."""
        return (self.picture_side // self.patch_side) ** 2


BENCHMARK = Geometry()
OTHER = Geometry(
    hidden=96,
    layers=3,
    heads=6,
    kv_heads=2,
    intermediate=160,
    vocabulary=611,
    context=512,
    vision_hidden=48,
    vision_layers=3,
    vision_heads=3,
    picture_side=48,
    patch_side=12,
    seed=7,
)
"""Another geometry in everything: grouped queries, odd vocabulary, other patches."""
NEXT = Geometry(
    family="llava_next",
    hidden=64,
    layers=2,
    heads=4,
    kv_heads=2,
    intermediate=128,
    vocabulary=600,
    vision_hidden=32,
    vision_layers=2,
    vision_heads=2,
    picture_side=32,
    patch_side=8,
    seed=3,
)
"""A LLaVA-NeXT: pictures are cut into tiles, so their number of features depends on their shape."""


def build_checkpoint(folder: Path, geometry: Geometry = BENCHMARK) -> Path:
    """Writes a checkpoint of random weights, the same for the same geometry; returns `folder`."""
    import torch
    import transformers

    tokenizer = build_tokenizer(geometry.vocabulary)
    vision = transformers.CLIPVisionConfig(
        image_size=geometry.picture_side,
        patch_size=geometry.patch_side,
        hidden_size=geometry.vision_hidden,
        intermediate_size=2 * geometry.vision_hidden,
        num_hidden_layers=geometry.vision_layers,
        num_attention_heads=geometry.vision_heads,
    )
    text = transformers.LlamaConfig(
        vocab_size=geometry.vocabulary,
        hidden_size=geometry.hidden,
        intermediate_size=geometry.intermediate,
        num_hidden_layers=geometry.layers,
        num_attention_heads=geometry.heads,
        num_key_value_heads=geometry.kv_heads,
        max_position_embeddings=geometry.context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,
    )
    common = {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "image_seq_length": geometry.patches,
        "vision_feature_layer": -2,
    }
    side = geometry.picture_side
    tiles = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(geometry.seed)
        if geometry.family == "llava_next":
            config = transformers.LlavaNextConfig(**common, image_grid_pinpoints=tiles)
            model = transformers.LlavaNextForConditionalGeneration(config)
        else:
            model = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(**common))
    with torch.no_grad():
        # Pictures shall matter to the answer, and no answer end early.
        for parameter in model.model.multi_modal_projector.parameters():
            parameter.mul_(geometry.picture_weight)
        model.lm_head.weight[: len(SPECIAL_TOKENS)] = 0
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    square = {"height": side, "width": side}
    arguments = {
        "tokenizer": tokenizer,
        "patch_size": geometry.patch_side,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": geometry.template or None,
    }
    if geometry.family == "llava_next":
        from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

        pictures = LlavaNextImageProcessorPil(
            size={"shortest_edge": side}, crop_size=square, image_grid_pinpoints=tiles
        )
        processor = transformers.LlavaNextProcessor(image_processor=pictures, **arguments)
    else:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        pictures = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square)
        processor = transformers.LlavaProcessor(image_processor=pictures, **arguments)
    processor.save_pretrained(folder)
    return folder


def build_tokenizer(vocabulary: int):  # type: ignore[no-untyped-def]  # transformers has no types
    """A byte-level BPE tokenizer of at most that many tokens: any text can be written."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        clean_up_tokenization_spaces=False,
    )
