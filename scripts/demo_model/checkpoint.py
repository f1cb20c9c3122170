"""The model's shell: tokenizer, processor and geometry, and the folder they are saved to."""

import random
import shutil
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from demo_model import small_talk
from llava_grpc.demo.questions import description_request, questions
from llava_grpc.demo.scenes import PICTURE_SIDE, TRAINING_SEEDS, scene_from_seed

PATCH_SIDE = 8
PATCHES = (PICTURE_SIDE // PATCH_SIDE) ** 2
VOCABULARY = 512
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<image>")

# In the manner of LLaVA-1.5: "<s>USER: <image>\nQuestion ASSISTANT: Answer</s>USER: ...".
# The template alone writes <s>; the tokenizer adds none, so it can never stand there twice.
CHAT_TEMPLATE = """\
{%- macro images(content) -%}
{%- if content is not string -%}
{%- for part in content if part['type'] == 'image' %}<image>{{ '\\n' }}{% endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro words(content) -%}
{%- if content is string -%}
{{ content }}
{%- else -%}
{%- for part in content if part['type'] == 'text' %}{{ part['text'] }}{% endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{- words(message['content']) + ' ' -}}
{%- elif message['role'] == 'user' -%}
{{- 'USER: ' + images(message['content']) + words(message['content']) + ' ' -}}
{%- elif message['role'] == 'assistant' -%}
{{- 'ASSISTANT: ' + words(message['content']) + eos_token -}}
{%- else -%}
{{- raise_exception('unknown role: ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- 'ASSISTANT: ' -}}
{%- endif -%}
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the words that the demo's sentences use."""
    tokenizer = Tokenizer(models.BPE())
    # A space belongs to the word before it. So "ASSISTANT: " ends in its space, an answer begins
    # without one, and a streamed answer is the same tokens as that answer in a later prompt.
    words = pre_tokenizers.Split(Regex(r"\p{L}+ ?|\p{N}+ ?|[^\s\p{L}\p{N}]+ ?|\s+"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def _corpus() -> list[str]:
    rng = random.Random(0)
    lines = []
    for seed in TRAINING_SEEDS[:2000]:
        scene = scene_from_seed(seed)
        for question in (description_request(scene, rng), *questions(scene, rng)):
            lines.append(f"USER: \n{question.text} ASSISTANT: {question.answer}")
    return lines + small_talk.sentences() * 20


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Resizes every picture to the whole square, so that no shape is cropped away."""
    side = {"height": PICTURE_SIDE, "width": PICTURE_SIDE}
    pictures = CLIPImageProcessorPil(
        size=side,
        crop_size=side,
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH_SIDE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """An untrained model: CLIP vision tower, two-layer projector, Llama."""
    vision = CLIPVisionConfig(
        image_size=PICTURE_SIDE,
        patch_size=PATCH_SIDE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=128,
    )
    return model


def export(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write the checkpoint folder in one move, so that no reader sees half of it."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(fresh)
    processor.save_pretrained(fresh)
    for file in fresh.iterdir():
        file.chmod(0o644)  # the weights are written for their owner's eyes alone
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
