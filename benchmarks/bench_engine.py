"""Tokens per second of many requests at once through the engine, against `model.generate` one after the other.

Same checkpoint, same process, same pictures and prompts, rounds in turn; a ratio for each round, their median and
spread. Greedy, and sampled with top-p. The last line is one JSON object.

    .venv/bin/python benchmarks/bench_engine.py [--rounds 5] [--requests 16] [--tokens 64] [--threads 2]
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import queue
import statistics
import tempfile
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import torch
import transformers
from PIL import Image as Pillow
from rich.console import Console
from rich.table import Table

from llava_grpc.config import EngineSettings
from llava_grpc.core.prompt import Conversation, GenerationRequest, Image, Role, Sampling, Turn
from llava_grpc.core.stream import Delta
from llava_grpc.engines.base import Ended, Failed
from llava_grpc.engines.transformers import TransformersEngine
from llava_grpc.testing.checkpoints import BENCHMARK, build_checkpoint

QUESTION = "What is in the picture?"
SAMPLED = {"temperature": 0.8, "top_p": 0.95}


def picture(number: int) -> bytes:
    """One of many plain pictures, as PNG."""
    buffer = io.BytesIO()
    Pillow.new("RGB", (112, 112), (number * 37 % 256, number * 91 % 256, number * 53 % 256)).save(buffer, "PNG")
    return buffer.getvalue()


def run_engine(engine: TransformersEngine, pictures: list[bytes], sampling: Sampling) -> tuple[float, list[list[int]]]:
    """Seconds and answers of all pictures asked about at once."""
    events: queue.Queue[tuple[int, object]] = queue.Queue()
    began = time.perf_counter()
    for number, data in enumerate(pictures):
        prompt = Conversation((Turn(Role.USER, (Image(data=data), QUESTION)),))
        request = GenerationRequest(
            request_id=f"r{number}", model="", prompt=prompt, sampling=replace(sampling, seed=number)
        )
        engine.submit(request, lambda event, number=number: events.put((number, event)))
    answers: list[list[int]] = [[] for _ in pictures]
    left = len(pictures)
    while left:
        number, event = events.get(timeout=120)
        if isinstance(event, Delta):
            answers[number].extend(event.token_ids)
        elif isinstance(event, Failed):
            raise event.error
        elif isinstance(event, Ended):
            left -= 1
    return time.perf_counter() - began, answers


def run_generate(model, processor, pictures: list[bytes], tokens: int, **options) -> tuple[float, list[list[int]]]:
    """Seconds and answers of the same, one after the other."""
    answers = []
    began = time.perf_counter()
    with torch.inference_mode():
        for data in pictures:
            content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
            text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            image = Pillow.open(io.BytesIO(data)).convert("RGB")
            inputs = processor(images=[image], text=[text], return_tensors="pt", add_special_tokens=False)
            output = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, **options)
            answers.append(output[0, inputs["input_ids"].shape[1] :].tolist())
    return time.perf_counter() - began, answers


def main() -> None:
    """Measure, print a table, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0, help="torch threads of both; 0: the engine's own choice")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()

    with tempfile.TemporaryDirectory() as folder:
        path = build_checkpoint(Path(folder) / "random-llava", BENCHMARK)
        engine = TransformersEngine(
            EngineSettings(
                model_path=str(path), slots=options.requests, threads=options.threads, image_cache_bytes=2**26
            )
        )
        engine.start(lambda text: None)
        # Neither side may end early: the random model has no end token.
        engine._loaded = replace(engine._loaded, end_ids=frozenset())
        model = transformers.LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
        model.generation_config.eos_token_id = None
        processor = transformers.AutoProcessor.from_pretrained(path)
        arms = {
            "greedy": (Sampling(max_new_tokens=options.tokens), {"do_sample": False}),
            "sampled": (
                Sampling(max_new_tokens=options.tokens, **SAMPLED),
                {"do_sample": True, "top_k": 0, **SAMPLED},
            ),
        }
        total = options.requests * options.tokens
        rates: dict[str, dict[str, list[float]]] = {arm: {"engine": [], "generate": []} for arm in arms}
        identical = 0
        for round_number in range(options.rounds + 1):  # the first is for warming up
            pictures = [picture(round_number * options.requests + number) for number in range(options.requests)]
            for arm, (sampling, generate) in arms.items():
                seconds, answers = run_engine(engine, pictures, sampling)
                other_seconds, others = run_generate(model, processor, pictures, options.tokens, **generate)
                assert all(len(answer) == options.tokens for answer in answers + others)
                if arm == "greedy":
                    identical += sum(one == other for one, other in zip(answers, others, strict=True))
                if round_number:
                    rates[arm]["engine"].append(total / seconds)
                    rates[arm]["generate"].append(total / other_seconds)
        engine.close()

    table = Table(title=f"{options.requests} requests at once, {options.tokens} new tokens each")
    for column in ("", "engine tokens/s", "generate tokens/s", "ratio (median)", "lowest", "highest"):
        table.add_column(column, justify="right" if column else "left")
    ratios = {}
    for arm, rate in rates.items():
        one = [ours / theirs for ours, theirs in zip(rate["engine"], rate["generate"], strict=True)]
        ratios[arm] = {"median": statistics.median(one), "lowest": min(one), "highest": max(one)}
        table.add_row(
            arm,
            f"{statistics.median(rate['engine']):.0f}",
            f"{statistics.median(rate['generate']):.0f}",
            *(f"{ratios[arm][key]:.2f}" for key in ("median", "lowest", "highest")),
        )
    Console().print(table)
    lower = min(ratios, key=lambda arm: ratios[arm]["median"])
    print(
        json.dumps(
            {
                "ratio_vs_generate": {str(options.requests): round(ratios[lower]["median"], 3)},
                "ratio_is_of": lower,
                "spread": {arm: {key: round(value, 3) for key, value in one.items()} for arm, one in ratios.items()},
                "tokens_per_second": {
                    arm: {side: round(statistics.median(values), 1) for side, values in rate.items()}
                    for arm, rate in rates.items()
                },
                "greedy_identical": f"{identical} of {options.requests * (options.rounds + 1)}",
                "config": {
                    "model": {key: value for key, value in asdict(BENCHMARK).items() if key != "template"},
                    "dtype": "float32",
                    "new_tokens": options.tokens,
                    "rounds": options.rounds,
                    "sampling": SAMPLED,
                    "torch_threads": torch.get_num_threads(),
                    "cpus": len(__import__("os").sched_getaffinity(0)),
                    "machine": platform.machine(),
                    "torch": torch.__version__,
                    "transformers": transformers.__version__,
                },
            }
        )
    )


if __name__ == "__main__":
    main()
