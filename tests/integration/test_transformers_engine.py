"""The default engine against `model.generate`, on the bundled checkpoint and on random ones of other geometry."""

import io
import queue
import random
import threading
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image as Pillow

from llava_grpc.config import EngineSettings
from llava_grpc.core.prompt import Conversation, GenerationRequest, Image, RawPrompt, Role, Sampling, Turn
from llava_grpc.core.stream import FinishReason
from llava_grpc.demo import MODEL_NAME, MODEL_PATH
from llava_grpc.engines.base import Began, Ended, EngineStartError, Failed, load_engine
from llava_grpc.engines.transformers import TransformersEngine
from llava_grpc.errors import (
    AllSlotsTakenError,
    EngineFailedError,
    ImageCountError,
    ImageInvalidError,
    ImageNotFoundError,
    ImagesNotSupportedError,
    ImageTooLargeError,
    PromptTooLongError,
    SamplingInvalidError,
)
from llava_grpc.testing.checkpoints import NEXT, OTHER, build_checkpoint, build_tokenizer
from llava_grpc.testing.reference import Answer, Reference, submit

TOKENS = 20


def png(seed: int, width: int = 64, height: int = 64) -> bytes:
    """A picture like no other."""
    chance = random.Random(seed)
    picture = Pillow.new("RGB", (width, height), tuple(chance.randrange(256) for _ in range(3)))
    for _ in range(5):
        left, top = chance.randrange(width), chance.randrange(height)
        box = (left, top, min(width, left + width // 2), min(height, top + height // 2))
        picture.paste(tuple(chance.randrange(256) for _ in range(3)), box)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def ask(*parts) -> Conversation:
    return Conversation((Turn(Role.USER, parts),))


def picture(seed: int, *size: int) -> Image:
    return Image(data=png(seed, *size))


GREEDY = Sampling(max_new_tokens=TOKENS)


def start(path, **options) -> TransformersEngine:
    settings = EngineSettings(model_path=str(path), image_cache_bytes=2**24, speed=100.0, threads=1)
    engine = TransformersEngine(replace(settings, **options))
    engine.start(lambda what: None)
    return engine


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Of torch: these models are too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "demo": MODEL_PATH,
        "other": build_checkpoint(root / "other", OTHER),
        "next": build_checkpoint(root / "next", NEXT),
    }


@pytest.fixture(scope="module")
def other(folders):
    engine = start(folders["other"])
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def other_reference(folders):
    return Reference(folders["other"])


def prompts() -> list:
    """Sixteen different ones."""
    return [
        *(ask(picture(seed, 40 + 11 * seed, 64), "What is this?") for seed in range(8)),
        ask("Hello."),
        ask("a < b"),
        ask(picture(1), "and", picture(2, 100, 30), "differ how?"),
        ask("Describe it.", picture(3)),
        RawPrompt("USER: <image>\nWhat? ASSISTANT:", (picture(3),)),
        RawPrompt("Once upon a time"),
        Conversation(
            (
                Turn(Role.SYSTEM, ("Be brief.",)),
                Turn(Role.USER, ("Hi",)),
                Turn(Role.ASSISTANT, ("Hello",)),
                Turn(Role.USER, (picture(4), "What?")),
            )
        ),
        ask(picture(5), picture(5), "Same?"),
    ]


@pytest.mark.parametrize("name", ["demo", "other", "next"])
def test_greedy_answers_are_those_of_generate_alone_and_together(folders, name):
    reference = Reference(folders[name])
    expected = [reference.answer(prompt, TOKENS) for prompt in prompts()]
    engine = start(folders[name])
    try:
        together = [submit(engine, prompt, GREEDY) for prompt in prompts()]
        for answer, prompt, (ids, text) in zip(together, prompts(), expected, strict=True):
            answer.wait()
            assert (answer.token_ids, answer.text) == (ids, text)
            assert answer.end.usage.prompt_tokens == reference.inputs(prompt)["input_ids"].shape[1]
            assert answer.deltas == [] or answer.deltas[-1].end_offset == len(ids)
        for prompt, (ids, text) in list(zip(prompts(), expected, strict=True))[::5]:
            alone = submit(engine, prompt, GREEDY).wait()
            assert (alone.token_ids, alone.text) == (ids, text)
    finally:
        engine.close()
    if name != "demo":  # else the test would say little
        assert len({tuple(ids) for ids, _ in expected}) > 10


def test_pictures_encoded_while_others_decode_are_seen_rightly(folders):
    """transformers hands some arguments on through the model's configuration, which threads share."""
    reference = Reference(folders["next"])
    wanted = [ask(picture(seed, 30 + 20 * seed, 50), "Who?") for seed in range(6)]
    expected = [reference.answer(prompt, TOKENS)[0] for prompt in wanted]
    engine = start(folders["next"])
    try:
        busy = submit(engine, ask("Go on and on."), Sampling(max_new_tokens=1000))
        for prompt, ids in zip(wanted, expected, strict=True):
            assert submit(engine, prompt, GREEDY).wait().token_ids == ids
        assert not any(isinstance(event, Ended) for event in busy.events)
        busy.ticket.cancel()
        busy.wait()
    finally:
        engine.close()


def test_a_table_of_two_pictures_serves_three_in_turn(folders, other_reference):
    three = [ask(picture(seed), "What is this?") for seed in (1, 4, 7)]
    expected = [other_reference.answer(prompt, TOKENS) for prompt in three]
    assert len({tuple(ids) for ids, _ in expected}) == 3
    engine = start(folders["other"], image_cache_bytes=2 * OTHER.patches * OTHER.hidden * 4)
    try:
        for turn in range(4):
            for prompt, (ids, text) in zip(three, expected, strict=True):
                answer = submit(engine, prompt, GREEDY).wait()
                assert (answer.token_ids, answer.text) == (ids, text), f"turn {turn}"
        chance, running = random.Random(0), []
        for _ in range(30):
            which = chance.randrange(3)
            try:
                running.append((which, submit(engine, three[which], GREEDY)))
            except AllSlotsTakenError:  # both rows in use
                for one, answer in running:
                    assert answer.wait().token_ids == expected[one][0]
                running = []
        with pytest.raises(ImageCountError, match="picture table"):
            submit(engine, ask(picture(1), picture(4), picture(7)), GREEDY)
        assert submit(engine, three[2], GREEDY).wait().token_ids == expected[2][0]
    finally:
        engine.close()


def test_pictures_seen_before_are_asked_for_by_digest(other):
    import hashlib

    data = png(77)
    digest = Image(sha256=hashlib.sha256(data).digest())
    with pytest.raises(ImageNotFoundError, match="not held"):
        submit(other, ask(digest, "What?"), GREEDY)
    first = submit(other, ask(Image(data=data), "What?"), GREEDY).wait()
    again = submit(other, ask(digest, "What?"), GREEDY).wait()
    assert again.token_ids == first.token_ids
    assert again.end.usage == first.end.usage
    assert again.end.usage.image_tokens == OTHER.patches


@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9, "top_k": 40}], ids=str)
def test_sampled_answers_repeat_and_go_on_from_any_cut(other, options):
    prompt = ask(picture(2), "What is this?")
    sampling = Sampling(max_new_tokens=TOKENS, seed=2**64 - 3, **options)
    crowd = [submit(other, ask(picture(seed), "Hm?"), replace(sampling, seed=seed)) for seed in range(5)]
    whole = submit(other, prompt, sampling).wait()
    assert len({tuple(answer.wait().token_ids) for answer in crowd}) == 5
    assert submit(other, prompt, sampling).wait().token_ids == whole.token_ids
    assert submit(other, prompt, replace(sampling, seed=5)).wait().token_ids != whole.token_ids
    for cut in range(1, len(whole.deltas), 4):
        offset = whole.deltas[cut - 1].end_offset
        rest = submit(other, prompt, sampling, emitted=whole.token_ids[:offset]).wait()
        assert rest.deltas == whole.deltas[cut:]
        assert rest.end == whole.end


def test_an_answer_that_was_complete_when_it_was_cut_ends_at_once(other):
    answer = submit(other, ask("Hi"), GREEDY, emitted=range(10, 10 + TOKENS)).wait()
    assert answer.deltas == []
    assert answer.end.reason is FinishReason.LENGTH
    assert answer.end.usage.completion_tokens == TOKENS


def test_stop_strings_stop_tokens_and_end_tokens(other, other_reference):
    prompt = ask(picture(3), "What is this?")
    ids, text = other_reference.answer(prompt, TOKENS)
    stop = text[3:5]
    stopped = submit(other, prompt, replace(GREEDY, stop=(stop,))).wait()
    assert stopped.text == text[: text.find(stop)]
    assert (stopped.end.reason, stopped.end.stop_sequence) == (FinishReason.STOP, stop)
    token = ids[6]
    by_token = submit(other, prompt, replace(GREEDY, stop_token_ids=(token,))).wait()
    assert by_token.token_ids == ids[: ids.index(token)]
    assert by_token.end.reason is FinishReason.STOP
    assert by_token.end.usage.completion_tokens == ids.index(token) + 1


@pytest.mark.parametrize(
    ("options", "of_generate"),
    [
        ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
        ({"repetition_penalty": 0.7}, {"repetition_penalty": 0.7}),
        ({"logit_bias": ((2, 30.0),)}, {"sequence_bias": {(2,): 30.0}}),
        ({"logit_bias": ((2, 30.0),), "min_new_tokens": 7}, {"sequence_bias": {(2,): 30.0}, "min_new_tokens": 7}),
        (
            {"logit_bias": ((40, 0.5), (41, -9.0)), "repetition_penalty": 1.2},
            {"sequence_bias": {(40,): 0.5, (41,): -9.0}, "repetition_penalty": 1.2},
        ),
    ],
    ids=str,
)
def test_bias_and_penalties_are_those_of_generate_also_beside_requests_without(
    other, other_reference, options, of_generate
):
    wanted = [ask(picture(seed, 40 + 11 * seed, 64), "What is this?") for seed in range(4)] + [ask("Hello.")]
    plain = [submit(other, prompt, GREEDY) for prompt in wanted]
    changed = [submit(other, prompt, replace(GREEDY, **options)) for prompt in wanted]
    for prompt, before, after in zip(wanted, plain, changed, strict=True):
        assert before.wait().token_ids == other_reference.answer(prompt, TOKENS)[0]
        assert after.wait().token_ids == other_reference.answer(prompt, TOKENS, **of_generate)[0]
    assert any(before.token_ids != after.token_ids for before, after in zip(plain, changed, strict=True))


def test_presence_and_frequency_penalties_keep_an_answer_from_repeating_itself(other):
    prompt, plain = ask("Hi"), Sampling(max_new_tokens=60)
    repeats = [
        len(answer) - len(set(answer))
        for answer in (
            submit(other, prompt, plain).wait().token_ids,
            submit(other, prompt, replace(plain, frequency_penalty=2.0, presence_penalty=2.0)).wait().token_ids,
            submit(other, prompt, replace(plain, frequency_penalty=-2.0)).wait().token_ids,
        )
    ]
    assert repeats[1] < repeats[0] < repeats[2]


def test_an_answer_whose_end_is_ignored_goes_on_and_stop_tokens_still_end_it(other):
    eager = replace(GREEDY, logit_bias=((2, 100.0),))
    ended = submit(other, ask("Hi"), eager).wait()
    assert (ended.token_ids, ended.end.reason, ended.end.usage.completion_tokens) == ([], FinishReason.STOP, 1)
    ignored = submit(other, ask("Hi"), replace(eager, ignore_eos=True)).wait()
    assert (ignored.token_ids, ignored.text, ignored.end.reason) == ([2] * TOKENS, "", FinishReason.LENGTH)
    stopped = submit(other, ask("Hi"), replace(eager, ignore_eos=True, stop_token_ids=(2,), min_new_tokens=4)).wait()
    assert (len(stopped.token_ids), stopped.end.reason) == (4, FinishReason.STOP)
    assert 2 not in stopped.token_ids


def test_log_probabilities_are_the_models_own_whatever_chose_the_token(other, other_reference):
    prompt = ask(picture(3), "What is this?")
    options = {"temperature": 1.5, "seed": 5, "repetition_penalty": 1.3, "logit_bias": ((40, 9.0),), "logprobs": 4}
    neighbours = [submit(other, ask("Hello."), GREEDY), submit(other, ask("Hi"), replace(GREEDY, logprobs=0))]
    answer = submit(other, prompt, replace(GREEDY, **options)).wait()
    inputs = other_reference.inputs(prompt)
    ids = torch.cat((inputs["input_ids"], torch.tensor([answer.token_ids])), 1)
    with torch.inference_mode():
        logits = other_reference.model(
            input_ids=ids, pixel_values=inputs["pixel_values"], attention_mask=torch.ones_like(ids)
        ).logits[0, -len(answer.token_ids) - 1 : -1]
    expected = logits.log_softmax(1)
    told = [entry for delta in answer.deltas for entry in delta.logprobs]
    assert [entry.token_id for entry in told] == answer.token_ids
    for row, entry in zip(expected, told, strict=True):
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-3)
        assert [one.logprob for one in entry.top] == pytest.approx(row.topk(4).values.tolist(), abs=1e-3)
    assert b"".join(entry.utf8 for entry in told).decode(errors="replace") == answer.text
    assert not any(delta.logprobs for delta in neighbours[0].wait().deltas)
    assert all(entry.top == () for delta in neighbours[1].wait().deltas for entry in delta.logprobs)


def test_cancelling_frees_the_slot_and_is_answered_within_a_step(folders):
    engine = start(folders["other"], slots=2, max_new_tokens_limit=400)
    try:
        long = Sampling(max_new_tokens=400)
        running = [submit(engine, ask("Tell me more."), long) for _ in range(2)]
        for answer in running:
            while not answer.deltas:
                answer.next()
        with pytest.raises(AllSlotsTakenError):
            submit(engine, ask("Me too."), GREEDY)
        assert engine.stats().running == 2
        for _ in range(3):
            running[0].ticket.cancel()
        assert running[0].wait().end.reason is FinishReason.CANCELLED
        assert running[0].end.usage.completion_tokens >= len(running[0].token_ids) > 0
        assert submit(engine, ask("Now?"), GREEDY).wait().end.reason is FinishReason.LENGTH
        running[1].ticket.cancel()
        running[1].wait()
        running[0].ticket.cancel()  # ended long ago
        with pytest.raises(queue.Empty):
            running[0].next(timeout=0.05)
        assert engine.stats().running == engine.stats().waiting == 0
        assert engine._loop._decoder.open == 0
    finally:
        engine.close()


def test_closing_cancels_what_is_open(folders):
    engine = start(folders["other"], slots=2, max_new_tokens_limit=400)
    answers = [submit(engine, ask("Go on."), Sampling(max_new_tokens=400)) for _ in range(2)]
    while not answers[0].deltas:
        answers[0].next()
    engine.close()
    assert [answer.wait(5).end.reason for answer in answers] == [FinishReason.CANCELLED] * 2
    with pytest.raises(EngineFailedError):
        submit(engine, ask("Anybody?"), GREEDY)


@pytest.fixture
def faulty(other, monkeypatch):
    """Makes the model raise when a condition on its input ids holds."""
    model = other._loaded.model
    forward = model.forward
    fault = {"when": lambda ids: False}

    def maybe(input_ids=None, **arguments):
        if fault["when"](input_ids):
            raise RuntimeError("injected fault")
        return forward(input_ids=input_ids, **arguments)

    monkeypatch.setattr(model, "forward", maybe)
    return fault


def test_a_step_that_fails_once_harms_nobody(other, other_reference, faulty):
    steps = iter([False] * 6 + [True] + [False] * 10_000)
    faulty["when"] = lambda ids: next(steps)
    several = [ask(picture(seed), "What is this?") for seed in range(4)]
    sampled = Sampling(max_new_tokens=TOKENS, temperature=1.0, seed=3, frequency_penalty=1.5, logprobs=1)
    answers = [submit(other, prompt, GREEDY) for prompt in several]
    draw = submit(other, several[0], sampled)
    for prompt, answer in zip(several, answers, strict=True):
        assert answer.wait().token_ids == other_reference.answer(prompt, TOKENS)[0]
    faulty["when"] = lambda ids: False
    assert draw.wait().token_ids == submit(other, several[0], sampled).wait().token_ids
    assert [entry.token_id for delta in draw.deltas for entry in delta.logprobs] == draw.token_ids


def test_a_request_that_makes_every_step_fail_fails_alone(other, other_reference, faulty):
    poison = other._loaded.prompter.encode(RawPrompt("\x07"))[-1]
    faulty["when"] = lambda ids: bool((ids == poison).any())
    innocent = [ask(picture(seed), "What is this?") for seed in range(3)]
    answers = [submit(other, prompt, GREEDY) for prompt in innocent]
    guilty = submit(other, ask("ring \x07 the bell"), GREEDY)
    with pytest.raises(EngineFailedError, match="injected fault"):
        assert guilty.wait().end
    for prompt, answer in zip(innocent, answers, strict=True):
        assert answer.wait().token_ids == other_reference.answer(prompt, TOKENS)[0]


def test_after_total_failure_the_next_request_succeeds(other, faulty):
    faulty["when"] = lambda ids: True
    answers = [submit(other, ask("Hi"), GREEDY) for _ in range(3)]
    for answer in answers:
        assert isinstance(answer.wait().events[-1], Failed)
    faulty["when"] = lambda ids: False
    assert submit(other, ask("Hi"), GREEDY).wait().end.reason is FinishReason.LENGTH
    assert other.stats().running == other.stats().waiting == 0


def test_a_sink_that_raises_harms_only_its_own(other):
    done = threading.Event()

    def broken(event):
        done.set()
        raise ValueError("sink")

    other.submit(GenerationRequest(request_id="x", model="", prompt=ask("Hi"), sampling=GREEDY), broken)
    assert submit(other, ask("Hi"), GREEDY).wait().end.reason is FinishReason.LENGTH
    assert done.wait(5)


def bomb() -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


BAD = {
    "no picture": (lambda: (ask(Image(data=b"hello"), "?"), GREEDY), ImageInvalidError),
    "truncated": (lambda: (ask(picture(1), Image(data=png(2)[:-60]), "?"), GREEDY), ImageInvalidError),
    "bomb": (lambda: (ask(Image(data=bomb()), "?"), GREEDY), ImageTooLargeError),
    "strip": (lambda: (ask(picture(1, 1, 16_000), "?"), GREEDY), ImageTooLargeError),
    "video": (lambda: (ask(Image(data=b"\0\0\0\x20ftypisom" + bytes(999)), "?"), GREEDY), ImageInvalidError),
    "17 pictures": (lambda: (ask(*[picture(1)] * 17), GREEDY), ImageCountError),
    "100,000 tokens": (lambda: (ask("x y " * 50_000), GREEDY), PromptTooLongError),
    "a little too long": (lambda: (ask("x" * 490), GREEDY), PromptTooLongError),
    "pictures too long": (lambda: (ask(*[picture(seed) for seed in range(16)], "x" * 240), GREEDY), PromptTooLongError),
    "answer too long": (lambda: (ask("Hi"), Sampling(max_new_tokens=2000)), SamplingInvalidError),
    "stop token beyond": (lambda: (ask("Hi"), Sampling(stop_token_ids=(611,))), SamplingInvalidError),
    "bias beyond": (lambda: (ask("Hi"), Sampling(logit_bias=((611, 1.0),))), SamplingInvalidError),
    "least beyond": (lambda: (ask("x" * 400), Sampling(min_new_tokens=200)), PromptTooLongError),
    "least beyond the default": (lambda: (ask("Hi"), Sampling(min_new_tokens=300)), SamplingInvalidError),
    "stop token below": (lambda: (ask("Hi"), Sampling(stop_token_ids=(-1,))), SamplingInvalidError),
    "unknown digest": (lambda: (ask(Image(sha256=bytes(32)), "?"), GREEDY), ImageNotFoundError),
    "not a number": (lambda: (ask("Hi"), Sampling(temperature=float("nan"))), SamplingInvalidError),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_requests_are_refused_fast_and_the_next_one_succeeds(other, other_reference, case):
    make, error = BAD[case]
    began = time.perf_counter()
    with pytest.raises(error) as caught:
        submit(other, *make())
    assert time.perf_counter() - began < 1.0
    if case == "truncated":
        assert "picture 2 of 2" in str(caught.value)
    if error is PromptTooLongError:
        assert "512" in str(caught.value) or str(512 - TOKENS) in str(caught.value)
    assert other.stats().waiting == 0
    prompt = ask(picture(1), "What is this?")
    assert submit(other, prompt, GREEDY).wait().token_ids == other_reference.answer(prompt, TOKENS)[0]
    assert all(entry.users == 0 for entry in other._eyes.table._entries.values())


def test_special_tokens_that_a_user_types_are_text(other):
    usage = submit(other, ask(picture(1), "a <image> b </s> c"), GREEDY).wait().end.usage
    assert usage.image_tokens == OTHER.patches
    ids = other._loaded.prompter.encode(ask("a <image> b </s> c"))
    assert other._loaded.prompter.image_id not in ids
    assert "a <image> b </s> c" in other._loaded.tokenizer.decode(ids, skip_special_tokens=True)


def test_the_default_length_is_256_or_what_the_context_leaves(other):
    near_full = ask("x " * 200)
    prompt_tokens = len(other._loaded.prompter.encode(near_full))
    answer = submit(other, near_full, Sampling()).wait()
    assert answer.end.usage.completion_tokens == min(256, 512 - prompt_tokens)


def test_more_than_the_cache_holds_is_computed_all_the_same(folders, other_reference):
    engine = start(folders["other"], kv_tokens=512, slots=8)
    try:
        wanted = [ask(picture(seed), "What is this?", "and more " * 10) for seed in range(8)]
        answers = [submit(engine, prompt, Sampling(max_new_tokens=60)) for prompt in wanted]
        for prompt, answer in zip(wanted, answers, strict=True):
            assert answer.wait().token_ids == other_reference.answer(prompt, 60)[0]
    finally:
        engine.close()


def test_the_card_says_what_is_served(folders):
    engine = start("", aliases=("demo",), context_tokens=300, speed=None)
    try:
        card = engine.card
        assert (card.name, card.aliases, card.sees_images, card.context_tokens) == (MODEL_NAME, ("demo",), True, 300)
        assert len(card.fingerprint.weights) == len(card.fingerprint.tokenizer) == 64
        assert (card.fingerprint.dtype, card.fingerprint.engine) == ("float32", "transformers 5.23")
        assert engine.slots == 16
        assert engine.speed > 0
        assert engine.kv_tokens >= 300, "at least one request of the longest kind"
        features = 64 * 128 * 4  # of the bundled model: 64 rows of 128 float32 numbers
        assert engine.cached_pictures == pytest.approx(2**24 / features, rel=0.01)
    finally:
        engine.close()


def test_a_checkpoint_without_a_template_is_asked_in_llava_15s_way(tmp_path, caplog):
    folder = build_checkpoint(tmp_path / "bare", replace(OTHER, template=""))
    prompt = RawPrompt("USER: <image>\nWhat? ASSISTANT:", (picture(1),))
    ids, _ = Reference(folder).answer(prompt, TOKENS)
    engine = start(folder)
    try:
        assert "no chat template" in caplog.text
        assert submit(engine, ask("What?", picture(1)), GREEDY).wait().token_ids == ids
        assert submit(engine, prompt, GREEDY).wait().token_ids == ids
    finally:
        engine.close()


def test_a_model_of_text_alone_answers_and_refuses_pictures(tmp_path):
    import transformers

    tokenizer = build_tokenizer(400)
    config = transformers.LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, eos_token_id=2
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = start(tmp_path)
    try:
        assert not engine.card.sees_images
        assert isinstance(submit(engine, ask("Hello"), GREEDY).wait().events[0], Began)
        with pytest.raises(ImagesNotSupportedError):
            submit(engine, ask(picture(1), "What?"), GREEDY)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model_path": "/nowhere/at/all"}, "no folder"),
        ({"options": {"speling": "1"}}, "no option speling"),
        ({"device": "abacus"}, "no device"),
        ({"device": "cuda:99"}, r"no device 'cuda:99': torch .* finds \d+ CUDA devices"),
        ({"device": "meta"}, "cannot use the device 'meta'"),
        ({"device": "xpu:99"}, "cannot use the device 'xpu:99'"),
        ({"device": "hip:0"}, r"cannot use the device 'hip:0': .{1,200}$"),
        ({"dtype": "int8"}, "no element type"),
        ({"image_cache_bytes": 1000}, "make it larger"),
    ],
)
def test_what_cannot_start_says_why(settings, says):
    with pytest.raises(EngineStartError, match=says):
        load_engine("transformers", EngineSettings(**settings)).start(lambda what: None)


def test_families_that_would_be_served_wrongly_are_refused(tmp_path):
    import transformers

    transformers.Gemma3Config().save_pretrained(tmp_path)
    with pytest.raises(EngineStartError, match="gemma3"):
        TransformersEngine(EngineSettings(model_path=str(tmp_path))).start(lambda what: None)


def test_many_threads_at_once_get_their_own_answers(other, other_reference):
    wanted = {seed: other_reference.answer(ask(picture(seed), "Who?"), TOKENS)[0] for seed in range(6)}
    wrong: list[int] = []

    def client(seed: int) -> None:
        for _ in range(3):
            answer: Answer = submit(other, ask(picture(seed), "Who?"), GREEDY)
            if answer.wait().token_ids != wanted[seed] or not isinstance(answer.events[-1], Ended):
                wrong.append(seed)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
