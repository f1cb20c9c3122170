"""From a folder or a hub name to a model that is ready to serve, or to a plain sentence why not."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from torch import nn

from llava_grpc import demo
from llava_grpc.config import EngineSettings
from llava_grpc.core.stream import Fingerprint
from llava_grpc.engines.base import EngineStartError, Progress
from llava_grpc.engines.logprobs import Spell
from llava_grpc.engines.paged import choose_attention
from llava_grpc.engines.prompting import DEFAULT_TEMPLATE, Prompter, probe_template
from llava_grpc.engines.spelling import speller

logger = logging.getLogger(__name__)

SEEING_FAMILIES = frozenset({"llava", "llava_next"})
"""Model types whose pictures enter by their input embeddings alone, under causal attention and positions of one axis:
what the paged decoder can serve. Others would answer, wrongly."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory.

    Attributes:
        model: on its device, in its element type, for inference only.
        processor: pictures to tensors; None where the model sees none.
        tokenizer: as the `tokenizers` library has it.
        prompter: lays prompts out and encodes them.
        spell: a token's bytes.
        silent_ids: ids that are no text: special tokens, and ids beyond the tokenizer's.
        end_ids: tokens that end an answer.
        vocabulary: ids that the model predicts.
        embedded: ids that its input embedding knows; at least `vocabulary`.
        width: elements of an embedding.
        context: positions that it was made for.
        kv_bytes_per_token: what one token takes in the KV cache, over all layers.
    """

    name: str
    model: nn.Module
    processor: Any
    tokenizer: Tokenizer
    prompter: Prompter
    spell: Spell
    silent_ids: frozenset[int]
    end_ids: frozenset[int]
    vocabulary: int
    embedded: int
    width: int
    context: int
    kv_bytes_per_token: int
    fingerprint: Fingerprint

    def decode(self, token_ids: Sequence[int]) -> str:
        """Ids to text in one go; special tokens are left out, spaces left alone."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    @property
    def sees_images(self) -> bool:
        """Whether pictures can be asked about."""
        return self.processor is not None


def device_of(settings: EngineSettings) -> torch.device:
    """The device to compute on.

    Raises:
        EngineStartError: torch does not know it, or cannot use it here.
    """
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(settings.device)
    except RuntimeError as error:
        raise EngineStartError(f"torch knows no device {settings.device!r}; try cpu, cuda or cuda:0") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            found = f"torch {torch.__version__} finds {count} CUDA devices here"
            remedy = f"try cuda:0 to cuda:{count - 1}" if count else "try cpu, or check the driver and torch's build"
            raise EngineStartError(f"there is no device {settings.device!r}: {found}; {remedy}")
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # each backend raises its own; the first sentence says it
        raise EngineStartError(
            f"torch cannot use the device {settings.device!r}: {str(error).partition('. ')[0]}; try cpu"
        ) from error
    return device


def dtype_of(settings: EngineSettings, device: torch.device) -> torch.dtype:
    """The element type to compute in."""
    if settings.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype = getattr(torch, settings.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise EngineStartError(f"{settings.dtype!r} is no element type; try float32, bfloat16 or float16")
    return dtype


def name_of(settings: EngineSettings) -> str:
    """The name to serve under: as set, or the path's last part, with its parent's before `checkpoint-N`."""
    if settings.model_name:
        return settings.model_name
    if not settings.model_path:
        return demo.MODEL_NAME
    parts = settings.model_path.rstrip("/").split("/")
    if parts[-1].startswith("checkpoint-") and len(parts) > 1:
        return f"{parts[-2]}_{parts[-1]}"
    return parts[-1]


def load(settings: EngineSettings, progress: Progress) -> Loaded:
    """Loads what the settings name.

    Raises:
        EngineStartError: not there, not readable, or of a kind that cannot be served rightly.
    """
    transformers.utils.logging.disable_progress_bar()
    device, path = device_of(settings), settings.model_path or str(demo.MODEL_PATH)
    dtype = dtype_of(settings, device)
    path = str(Path(path).expanduser()) if Path(path).expanduser().is_dir() else path
    try:
        config = transformers.AutoConfig.from_pretrained(path)
        sees_images = _check(config, path)
        with ThreadPoolExecutor(1) as pool:
            weights = pool.submit(_hash_weights, path)
            progress(f"loading {name_of(settings)} to {device} as {str(dtype).removeprefix('torch.')}")
            auto = transformers.AutoModelForImageTextToText if sees_images else transformers.AutoModelForCausalLM
            model = auto.from_pretrained(
                path, dtype=dtype, attn_implementation=settings.options.get("attention", "sdpa")
            )
            processor = transformers.AutoProcessor.from_pretrained(path) if sees_images else None
            tokenizer = processor.tokenizer if processor else transformers.AutoTokenizer.from_pretrained(path)
            model = model.to(device).eval().requires_grad_(False)
            if "attention" not in settings.options:
                choose_attention(model)
            digest = weights.result()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise EngineStartError(f"cannot load {path}: {error}") from error
    return _assemble(settings, model, processor, tokenizer, digest)


def _check(config: Any, path: str) -> bool:
    """Whether it sees pictures; refuses what would be served wrongly."""
    kind = config.model_type
    if kind in SEEING_FAMILIES:
        return True
    if getattr(config, "vision_config", None) is not None or getattr(config, "audio_config", None) is not None:
        raise EngineStartError(
            f"{path} is a {kind!r} model; the engine serves {', '.join(sorted(SEEING_FAMILIES))} and models of text. "
            "The engines vllm and openai serve others"
        )
    if config.is_encoder_decoder:
        raise EngineStartError(f"{path} is an encoder-decoder model ({kind!r}); the engine serves decoders only")
    return False


def _assemble(settings: EngineSettings, model: Any, processor: Any, tokenizer: Any, digest: str) -> Loaded:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise EngineStartError(f"{name_of(settings)} has no fast tokenizer (tokenizer.json)")
    text_config = model.config.get_text_config()
    embedding = model.get_input_embeddings()
    vocabulary = model.get_output_embeddings().weight.shape[0]
    special = {id_ for id_, token in backend.get_added_tokens_decoder().items() if token.special}
    known = backend.get_vocab_size(with_added_tokens=True)
    quantization = getattr(model.config, "quantization_config", None)
    return Loaded(
        name=name_of(settings),
        model=model,
        processor=processor,
        tokenizer=backend,
        prompter=_prompter(processor, tokenizer, backend),
        spell=speller(backend),
        silent_ids=frozenset(special | set(range(known, vocabulary))),
        end_ids=_end_ids(model, text_config, tokenizer),
        vocabulary=vocabulary,
        embedded=max(vocabulary, embedding.weight.shape[0]),
        width=embedding.weight.shape[1],
        context=int(getattr(text_config, "max_position_embeddings", 0) or 4096),
        kv_bytes_per_token=_kv_bytes_per_token(text_config, model.dtype),
        fingerprint=Fingerprint(
            weights=digest,
            dtype=str(model.dtype).removeprefix("torch."),
            quantization=str(getattr(quantization, "quant_method", "none")),
            tokenizer=hashlib.sha256(backend.to_str().encode()).hexdigest(),
            engine="transformers " + ".".join(transformers.__version__.split(".")[:2]),
        ),
    )


def _prompter(processor: Any, tokenizer: Any, backend: Tokenizer) -> Prompter:
    """The checkpoint's template, or LLaVA-1.5's where it has none that can be used."""
    owner = processor if processor is not None and processor.chat_template else tokenizer
    image_token = "" if processor is None else processor.image_token
    template = None

    def render(messages: list[dict[str, Any]]) -> str:
        rendered: str = owner.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, chat_template=template
        )
        return rendered

    kind = probe_template(render, image_token) if owner.chat_template else None
    if kind is None or kind.images != bool(image_token):
        logger.warning("the checkpoint has no chat template that can be used; prompts are laid out as LLaVA-1.5's")
        template = DEFAULT_TEMPLATE.replace("</s>", tokenizer.eos_token or "").replace("<image>", image_token)
        kind = probe_template(render, image_token)
        if kind is None:
            raise EngineStartError("no chat template can be applied to this checkpoint's tokenizer")
    return Prompter(
        backend,
        render,
        kind,
        image_token=image_token,
        bos_token=tokenizer.bos_token or "",
        conversations_add_special=processor is not None or template is not None,
    )


def _end_ids(model: Any, text_config: Any, tokenizer: Any) -> frozenset[int]:
    for source in (model.generation_config, text_config, tokenizer):
        ends = getattr(source, "eos_token_id", None)
        if ends is not None:
            return frozenset(ends if isinstance(ends, list | tuple) else [ends])
    return frozenset()


def _kv_bytes_per_token(text_config: Any, dtype: torch.dtype) -> int:
    heads: int = getattr(text_config, "num_key_value_heads", None) or text_config.num_attention_heads
    head: int = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    layers: int = text_config.num_hidden_layers
    return 2 * layers * heads * head * dtype.itemsize


def _hash_weights(path: str) -> str:
    """sha256 over the names and bytes of the configuration and the weights' files."""
    total = hashlib.sha256()
    for file in _weight_files(path):
        total.update(file.name.encode())
        with file.open("rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()


def _weight_files(path: str) -> Iterator[Path]:
    folder = Path(path)
    if not folder.is_dir():
        found = transformers.utils.cached_file(path, "config.json")
        folder = Path(found).parent
    yield folder / "config.json"
    yield from sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
