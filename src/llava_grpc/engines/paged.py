"""The one place that touches transformers' continuous batching, whose parts are private and change between releases.

Written for and tested with 5.23. `PagedDecoder` drives the batch processor itself, one `step` at a time, on the thread
of whoever calls: the manager's own thread, queues and output routing are not used, since they hide failures (an
exception ends the thread, and every request with it), say nothing of a cancelled request, and copy the whole answer
for every token. Every size is given: left to itself the library takes gigabytes.

Not thread-safe: one thread calls.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, GenerationConfig, LogitsProcessorList
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cache import group_layers_by_attn_type
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager
from transformers.generation.continuous_batching.requests import RequestState, RequestStatus

from llava_grpc.engines.choice import GREEDY, Choice, Chooser
from llava_grpc.engines.logprobs import Likelihood

SMALLEST_PAGE = 4
ATTENTION = "llava_grpc_by_request"
"""The name under which `attend_by_request` is registered."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Every size of a decoder.

    Attributes:
        slots: requests in a step at most.
        kv_tokens: tokens that the KV cache holds, over all requests.
        batch_tokens: tokens in a step at most, prompts in chunks and one for each running request.
        page_tokens: tokens in a page of the cache.
    """

    slots: int
    kv_tokens: int
    batch_tokens: int
    page_tokens: int


@dataclass(frozen=True, slots=True)
class Step:
    """One request's new token, and whether it was its last (an end token, or the limit): then its pages are free."""

    key: str
    token_id: int
    ended: bool
    likelihood: Likelihood | None = None


class _Sampler(ContinuousBatchingLogitsProcessorList):  # type: ignore[misc]
    """Takes the place of the library's processors: tells the chooser what rows are coming, then has it choose.

    Sound because asynchronous batching and graph capture are off: `prepare_tensor_args` and the call that follows it
    are of one batch.
    """

    def __init__(self, chooser: Chooser) -> None:
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self._chooser = chooser

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: Tensor) -> Tensor:
        states = [request.state for request in requests_in_batch if request.has_new_token]
        self._chooser.prepare(
            (state.request_id, len(state.initial_tokens) + len(state.generated_tokens)) for state in states
        )
        return arg_storage

    def __call__(self, input_ids: Tensor, scores: Tensor, logits_processor_args: Tensor) -> Tensor:
        return self._chooser.choose(scores)


def attend_by_request(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cache: Any,
    cu_seq_lens_q: Tensor,
    scaling: float | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Attention over the paged cache, one request after the other.

    The library's own way on a CPU attends from every request to every other, and masks that away: its cost grows with
    the square of the requests, and the last bits of one request's attention depend on the others. Here neither is so;
    that is true of attention only: the other layers compute the tokens of all requests as one matrix, and the last bits
    of a product may depend on how many rows it has.

    Args:
        query: [1, heads, new tokens of all requests, width]; key and value likewise, with their own heads.
        cache: the paged cache, which takes `key` and `value` in and gives all that was before as well.
        cu_seq_lens_q: where each request's new tokens begin, and the end of the last one's.

    Returns:
        [1, new tokens, heads, width].
    """
    key, value = cache.update(key, value, module.layer_idx, arguments)
    queries, keys = cu_seq_lens_q.tolist(), arguments["cu_seq_lens_k"].tolist()
    groups = query.shape[1] // key.shape[1]
    answers = []
    for number in range(len(queries) - 1):
        asked = query[:, :, queries[number] : queries[number + 1]]
        length = asked.shape[2]
        place = slice(keys[number], keys[number + 1])
        known, worth = key[:, :, place], value[:, :, place]
        if length == 1:  # the queries that share a key head take the place of several tokens
            packed = asked.reshape(1, known.shape[1], groups, -1)
            answer = scaled_dot_product_attention(packed, known, worth, scale=scaling).reshape(asked.shape)
        else:
            if groups > 1:
                known, worth = known.repeat_interleave(groups, 1), worth.repeat_interleave(groups, 1)
            before = known.shape[2] - length
            mask = None
            if before:
                mask = torch.ones(length, length + before, dtype=torch.bool, device=query.device).tril(before)
            answer = scaled_dot_product_attention(
                asked, known, worth, attn_mask=mask, is_causal=mask is None, scale=scaling
            )
        answers.append(answer)
    return torch.cat(answers, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attend_by_request)


class _Caller:
    """The model as the library calls it, but for `is_causal`, which every attention knows by itself.

    Given that argument, transformers writes it into the model's configuration while the call lasts, and whoever encodes
    a picture meanwhile, on another thread, gets a vision tower that looks one way only.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, *, is_causal: bool, **arguments: Any) -> Any:
        return self._model(**arguments)

    def _supports_logits_to_keep(self) -> bool:
        supports: bool = self._model._supports_logits_to_keep()
        return supports


class _Manager(ContinuousBatchingManager):  # type: ignore[misc]
    """Leaves the model's attention as it is."""

    def switch_to_cb_friendly_attn(self, model: nn.Module, auto_switch_to_flash: bool = True) -> None:
        """Nothing to switch: see `attend_by_request`."""


def choose_attention(model: Any) -> None:
    """Lets the text model attend by request where that is better: on a CPU, where every layer sees everything."""
    config = model.config.get_text_config()
    if model.device.type == "cpu" and list(group_layers_by_attn_type(config)) == ["full_attention"]:
        model.set_attn_implementation(ATTENTION if config is model.config else {"text_config": ATTENTION})


class PagedDecoder:
    """Decodes many sequences at once over a paged KV cache that shares prefixes.

    Args:
        model: a causal language model of transformers; its input embedding may know ids beyond the vocabulary.
        sizes: see there.
    """

    def __init__(self, model: nn.Module, sizes: Sizes) -> None:
        self.sizes = sizes
        self._model = model
        self._caller = _Caller(model)
        self._chooser = Chooser()
        self._processor: Any = None  # until it is built, or where a reset failed
        self._build()

    def _build(self) -> None:
        sizes = self.sizes
        config = ContinuousBatchingConfig(
            page_size=max(sizes.page_tokens, SMALLEST_PAGE),
            num_blocks=ceil(sizes.kv_tokens / max(sizes.page_tokens, SMALLEST_PAGE)),
            max_batch_tokens=sizes.batch_tokens,
            max_memory_percent=1.0,
            max_requests_per_batch=sizes.slots,
            max_blocks_per_request=0,
            allow_block_sharing=True,
            use_async_batching=False,
            use_cuda_graph=False,
            scheduler_type="fifo",
            safety_margin=0.15,  # pages kept for sharing are only dropped below such a margin
            auto_switch_to_flash=False,
            cpu_offload_space=0.0,
        )
        generation = GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=1)
        manager = _Manager(self._model, generation, config)
        manager.logit_processor = _Sampler(self._chooser)
        with torch.no_grad():
            self._processor = manager._create_batch_processor()

    @property
    def open(self) -> int:
        """Sequences that are not ended."""
        if self._processor is None:
            return 0
        scheduler = self._processor.scheduler
        return len(scheduler.active_requests) + len(scheduler.waiting_requests)

    def add(
        self,
        key: str,
        token_ids: Sequence[int],
        *,
        max_new_tokens: int,
        end_ids: Collection[int],
        choice: Choice = GREEDY,
        prompt_length: int | None = None,
    ) -> None:
        """Takes up a sequence.

        Args:
            key: its name, not in use.
            token_ids: the prompt, and what was answered already.
            max_new_tokens: at least 1.
            end_ids: tokens that end it.
            choice: how its tokens are chosen.
            prompt_length: how many of `token_ids` are the prompt; positions of draws and penalties of the answer count
                from there.
        """
        state = RequestState(
            request_id=key,
            initial_tokens=list(token_ids),
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(end_ids),
        )
        self._chooser.add(key, choice, token_ids, len(token_ids) if prompt_length is None else prompt_length)
        if self._processor is None:
            self._build()
        self._processor.scheduler.add_waiting_request(state)

    def remove(self, key: str) -> None:
        """Drops a sequence and frees its pages, now; one that is not there is no error."""
        self._chooser.remove(key)
        if self._processor is None:
            return
        scheduler = self._processor.scheduler
        if key in scheduler.active_requests or key in scheduler.waiting_requests:
            scheduler.set_request_cancellation(key)
            scheduler.clear_cancelled_requests()

    def step(self) -> list[Step]:
        """Computes one batch. Empty where nothing is open, or where only parts of prompts were computed.

        Whatever it raises leaves the decoder in doubt: `reset` it.
        """
        processor = self._processor
        with torch.inference_mode():
            if not processor.prepare_next_batch():
                return []
            processor._generation_step(self._caller)
            processor.update_batch()
        states = [entry.state for entry in processor.inputs_and_outputs.requests_in_batch if entry.has_new_token]
        token_ids = [state.generated_tokens[-1] for state in states]
        told = self._chooser.likelihoods(token_ids)
        steps = []
        for index, (state, token_id) in enumerate(zip(states, token_ids, strict=True)):
            key, ended = state.request_id, state.status == RequestStatus.FINISHED
            if ended:
                self._chooser.remove(key)
            else:
                self._chooser.take(key, token_id)
            steps.append(Step(key, token_id, ended, told.get(index)))
        return steps

    def drop_shared_pages(self) -> None:
        """Forgets every page that no open sequence uses: none of them can be matched any more."""
        if self._processor is not None:
            self._processor.cache.evict_cached_blocks()

    def reset(self) -> None:
        """Drops everything and starts afresh, after a failure too."""
        self._chooser.clear()
        self._processor = None
        gc.collect()
        self._build()
