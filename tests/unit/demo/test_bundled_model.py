"""The bundled checkpoint: small, complete, offline, and it really sees."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava_grpc.demo import MODEL_PATH, SAMPLE, sample_pictures

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def processor():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoProcessor.from_pretrained(MODEL_PATH, local_files_only=True)


@pytest.fixture(scope="module")
def evaluation():
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("evaluate_demo", ROOT / "scripts/evaluate_demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_demo_package_loads_neither_torch_nor_pillow():
    program = "import sys, llava_grpc.demo; print([m for m in ('torch', 'PIL') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    shown = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_folder_is_below_ten_megabytes():
    assert sum(file.stat().st_size for file in MODEL_PATH.iterdir()) < 10_000_000


def test_the_sample_pictures_are_there():
    assert SAMPLE.picture in sample_pictures()
    assert 4 <= len(sample_pictures()) <= 6


@pytest.mark.parametrize(
    "text",
    [
        "What is this? 😀 👩‍👩‍👧 🏳️‍🌈",
        "这是什么?  これは何ですか",
        " two  spaces,\ttab\r\nand line ",
        "ASSISTANT: no, USER: yes",
        bytes(range(1, 128)).decode(),
        "Ω≈ç√∫ ñ é \u202e \ufeff \U0010ffff",
    ],
)
def test_whatever_a_person_types_comes_back_exactly(processor, text):
    ids = processor.tokenizer.encode(text, add_special_tokens=False)
    assert processor.tokenizer.decode(ids) == text


def test_a_conversation_begins_once_and_each_picture_takes_its_patches(processor):
    from PIL import Image

    picture = Image.open(SAMPLE.picture)
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi."}, {"type": "image", "image": picture}]},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "And?"}]},
    ]
    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
    assert prompt == ("<s>Be brief. USER: <image>\nHi. ASSISTANT: Hello!</s>USER: <image>\nAnd? ASSISTANT: ")
    inputs = processor.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = inputs["input_ids"][0].tolist()
    assert ids[0] == processor.tokenizer.bos_token_id
    assert ids.count(processor.tokenizer.bos_token_id) == 1
    assert ids.count(processor.image_token_id) == 2 * 64
    assert inputs["pixel_values"].shape == (2, 3, 64, 64)


def test_it_answers_the_sample_question(evaluation):
    from PIL import Image

    from llava_grpc.demo.questions import Question

    question = Question("describe", SAMPLE.question, SAMPLE.answer)
    [answer] = evaluation.Examinee(MODEL_PATH).answers([(Image.open(SAMPLE.picture), question)])
    assert answer == SAMPLE.answer


def test_it_is_right_about_pictures_it_has_never_seen(evaluation):
    items = evaluation.fresh_items(40)
    answers = evaluation.Examinee(MODEL_PATH).answers(items)
    right = sum(answer == question.answer for answer, (_, question) in zip(answers, items, strict=True))
    assert right >= 0.85 * len(items)
