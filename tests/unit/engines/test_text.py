"""Streamed text is the whole answer's text, cut where it may be cut, stopped where it must stop."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from llava_grpc.core.stream import Delta
from llava_grpc.engines.text import AnswerText
from llava_grpc.errors import SamplingInvalidError

SENTENCES = ["A red circle, two blue squares.", "Grüße aus Köln! 你好，世界 🙂🙃 naïve café", "family: 👩‍👩‍👧‍👦 ok"]


def byte_level() -> Tokenizer:
    """As in GPT-2 and Llama 3: tokens are byte strings, so a character may lie in several."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<image>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SENTENCES[0]] * 9, trainer)
    return tokenizer


def sentencepiece() -> Tokenizer:
    """As in Llama 2: words begin with a visible space, which the first word loses; unknown characters are bytes."""
    specials = ["<unk>", "<s>", "</s>"]
    pieces = ["\u2581", "\u2581a", "b", "c", "\u2581red", "\u2581circle", ",", ".", "e", "n"]
    vocabulary = {piece: index for index, piece in enumerate(specials)}
    for piece in [f"<0x{byte:02X}>" for byte in range(256)] + pieces:
        vocabulary[piece] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(Regex("\u2581"), " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(specials)
    return tokenizer


BYTE_LEVEL, SENTENCEPIECE = byte_level(), sentencepiece()


def whole(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True)


def answer(tokenizer: Tokenizer, stops=(), emitted=()) -> AnswerText:
    silent = {id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return AnswerText(lambda ids: whole(tokenizer, list(ids)), silent, stops, emitted)


def stream(text: AnswerText, ids: list[int]) -> list[Delta]:
    """Deltas of the ids, to the end or to a stop string."""
    deltas = []
    if text.stop_sequence:  # resumed after its end
        return deltas
    for id_ in ids:
        if delta := text.push(id_):
            deltas.append(delta)
        if text.stop_sequence:
            return deltas
    if delta := text.finish():
        deltas.append(delta)
    return deltas


def joined(deltas: list[Delta]) -> tuple[str, list[int]]:
    return "".join(one.text for one in deltas), [id_ for one in deltas for id_ in one.token_ids]


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte-level", "sentencepiece"])
@pytest.mark.parametrize("sentence", SENTENCES)
def test_texts_joined_are_the_answer_and_no_character_is_split(tokenizer, sentence):
    ids = tokenizer.encode(sentence, add_special_tokens=False).ids
    deltas = stream(answer(tokenizer), ids)
    assert joined(deltas) == (whole(tokenizer, ids), ids)
    assert [one.end_offset for one in deltas] == [
        sum(len(one.token_ids) for one in deltas[: n + 1]) for n in range(len(deltas))
    ]
    assert not any("\ufffd" in one.text for one in deltas)
    assert all(one.text for one in deltas)


@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() + 5), max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_ids_of_a_byte_level_vocabulary_join_to_the_whole_text(ids):
    deltas = stream(answer(BYTE_LEVEL), ids)
    assert joined(deltas) == (whole(BYTE_LEVEL, ids), ids)


@given(st.lists(st.sampled_from(["a", "b", " ", "é", "你", "🙂", "red", ","]), max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_in_byte_fallback_tokens_joins_to_itself(pieces):
    ids = SENTENCEPIECE.encode("".join(pieces), add_special_tokens=False).ids
    assert joined(stream(answer(SENTENCEPIECE), ids)) == (whole(SENTENCEPIECE, ids), ids)


def test_bytes_that_are_no_text_are_not_held_back_for_ever():
    bad = BYTE_LEVEL.token_to_id("ÿ")  # the byte 0xFF, which no character has
    text = answer(BYTE_LEVEL)
    early = [delta for delta in (text.push(bad) for _ in range(20)) if delta]
    assert early
    assert joined([*early, text.finish()]) == ("\ufffd" * 20, [bad] * 20)


def test_unfinished_bytes_are_flushed_at_the_end():
    ids = BYTE_LEVEL.encode("a🙂", add_special_tokens=False).ids[:-1]
    assert joined(stream(answer(BYTE_LEVEL), ids)) == (whole(BYTE_LEVEL, ids), ids)


def test_special_tokens_are_delivered_without_text():
    ids = [BYTE_LEVEL.token_to_id("<image>"), *BYTE_LEVEL.encode("red", add_special_tokens=False).ids]
    deltas = stream(answer(BYTE_LEVEL), ids)
    assert deltas[0] == Delta("", (ids[0],), 1)
    assert joined(deltas) == ("red", ids)


WORDS = dict(enumerate("abcdefgh ")) | {20: "ab", 21: "cde", 22: "abcab", 23: " end", 24: "ENDING", 25: "x"}


def words(stops=(), emitted=()) -> AnswerText:
    return AnswerText(lambda ids: "".join(WORDS[id_] for id_ in ids), (), stops, emitted)


def test_a_possible_stop_string_is_held_back_with_its_tokens_and_let_go_when_it_is_none():
    text = words(["abx"])
    assert text.push(0) is None
    assert text.push(1) is None
    assert text.push(2) == Delta("abc", (0, 1, 2), 3)


def test_text_before_a_stop_string_is_delivered_and_the_rest_dropped():
    text = words(["ca"])
    assert text.push(22) == Delta("ab", (22,), 1)  # "abcab"
    assert text.stop_sequence == "ca"


def test_a_stop_string_at_the_beginning_leaves_nothing():
    text = words(["abc"])
    assert [text.push(0), text.push(1), text.push(2)] == [None, None, None]
    assert text.stop_sequence == "abc"


def test_a_held_stop_string_is_delivered_when_the_answer_ends():
    text = words(["abx"])
    text.push(0)
    text.push(1)
    assert text.finish() == Delta("ab", (0, 1), 2)


def test_the_stop_string_that_is_complete_first_wins_however_the_text_is_cut():
    letters, token = words(["abca", "bc"]), words(["abca", "bc"])
    for id_ in (0, 1, 2):
        last = letters.push(id_)
    assert last == Delta("a", (0,), 1)
    assert token.push(22) == Delta("a", (22,), 1)
    assert letters.stop_sequence == token.stop_sequence == "bc"


@given(
    st.lists(st.sampled_from(sorted(WORDS)), max_size=30),
    st.lists(st.text("abcdefgh ENDING", min_size=1, max_size=4), max_size=3),
)
@settings(max_examples=400, deadline=None)
def test_stopped_text_is_the_text_up_to_the_first_complete_stop_string(ids, stops):
    full = "".join(WORDS[id_] for id_ in ids)
    ends = [(full.find(stop) + len(stop), full.find(stop)) for stop in stops if stop in full]
    expected = full[: min(ends)[1]] if ends else full
    text = words(stops)
    deltas = stream(text, ids)
    got, tokens = joined(deltas)
    assert got == expected
    assert tokens == ids[: len(tokens)]
    assert bool(text.stop_sequence) == bool(ends)
    if ends:  # the tokens are those whose text begins before the end
        begins = [len("".join(WORDS[id_] for id_ in ids[:n])) for n in range(len(ids))]
        assert len(tokens) == sum(begin < len(expected) for begin in begins)


@given(st.lists(st.sampled_from(sorted(WORDS)), min_size=1, max_size=30), st.data())
@settings(max_examples=300, deadline=None)
def test_a_resumed_answer_goes_on_as_the_whole_one_would(ids, data):
    """Also from a log that is complete: with the end not delivered, what was held back is made again and not told."""
    stops = data.draw(st.lists(st.text("abcde", min_size=1, max_size=4), max_size=2))
    first = words(stops)
    deltas = stream(first, ids)
    kept = deltas[: data.draw(st.integers(0, len(deltas)))]
    _, emitted = joined(kept)
    again = words(stops, emitted)
    assert kept + stream(again, ids[len(emitted) :]) == deltas
    assert again.stop_sequence == first.stop_sequence


@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() + 5), min_size=1, max_size=40), st.data())
@settings(max_examples=300, deadline=None)
def test_a_resumed_answer_of_any_bytes_goes_on_as_the_whole_one_would(ids, data):
    deltas = stream(answer(BYTE_LEVEL), ids)
    kept = deltas[: data.draw(st.integers(0, len(deltas)))]
    _, emitted = joined(kept)
    assert kept + stream(answer(BYTE_LEVEL, emitted=emitted), ids[len(emitted) :]) == deltas


def test_half_a_character_that_was_delivered_at_the_end_is_not_delivered_again():
    ids = BYTE_LEVEL.encode("a🙂", add_special_tokens=False).ids[:-1]
    text = answer(BYTE_LEVEL, emitted=ids)
    assert text.finish() is None


def test_a_character_whose_first_half_was_in_the_log_comes_whole_with_its_new_tokens():
    ids = BYTE_LEVEL.encode("a🙂b", add_special_tokens=False).ids
    text = answer(BYTE_LEVEL, emitted=ids[:2])
    assert joined(stream(text, ids[2:])) == ("🙂b", ids[2:])


def test_a_stop_string_in_the_log_has_ended_the_answer():
    assert words(["ca"], [22]).stop_sequence == "ca"
    with pytest.raises(SamplingInvalidError, match="go on after the stop string 'ca'"):
        words(["ca"], [22, 0])


def test_a_stop_string_counts_once_the_answer_is_long_enough():
    early = AnswerText(lambda ids: "".join(WORDS[id_] for id_ in ids), (), ["ab"], min_new_tokens=3)
    assert joined(stream(early, [0, 1, 25, 0, 1, 2])) == ("abx", [0, 1, 25])
    assert early.stop_sequence == "ab"


def test_a_stop_string_that_was_complete_too_early_does_not_count_later_either():
    text = AnswerText(lambda ids: "".join(WORDS[id_] for id_ in ids), (), ["ab", "abd"], min_new_tokens=2)
    assert joined(stream(text, [0, 1, 3])) == ("", [])
    assert text.stop_sequence == "abd", "held as its beginning, and complete late enough"
    text = AnswerText(lambda ids: "".join(WORDS[id_] for id_ in ids), (), ["ab", "abd"], min_new_tokens=2)
    assert joined(stream(text, [0, 1, 25])) == ("abx", [0, 1, 25])


@given(
    st.lists(st.sampled_from(sorted(WORDS)), min_size=1, max_size=20),
    st.lists(st.text("abcde", min_size=1, max_size=3), max_size=2),
    st.integers(0, 8),
)
@settings(max_examples=400, deadline=None)
def test_with_a_least_length_the_first_stop_string_complete_after_it_ends_the_text(ids, stops, least):
    ends = [len("".join(WORDS[id_] for id_ in ids[: n + 1])) for n in range(len(ids))]
    full = "".join(WORDS[id_] for id_ in ids)
    floor = ends[least - 1] if 0 < least <= len(ids) else 0  # a stop string must be complete beyond this
    matches = [
        (start + len(stop), start)
        for stop in stops
        for start in range(len(full))
        if full.startswith(stop, start) and start + len(stop) > floor and least < len(ids)
    ]
    text = AnswerText(lambda given_: "".join(WORDS[id_] for id_ in given_), (), stops, min_new_tokens=least)
    got, _ = joined(stream(text, ids))
    assert got == (full[: min(matches)[1]] if matches else full)


def test_a_resumed_sentencepiece_answer_keeps_its_spaces():
    ids = SENTENCEPIECE.encode("a red circle", add_special_tokens=False).ids
    for cut in range(len(ids)):
        rest = stream(answer(SENTENCEPIECE, emitted=ids[:cut]), ids[cut:])
        assert whole(SENTENCEPIECE, ids[:cut]) + joined(rest)[0] == "a red circle"


def test_the_cost_of_a_token_does_not_grow():
    longest = 0

    def decode(ids):
        nonlocal longest
        longest = max(longest, len(ids))
        return "".join(WORDS[id_] for id_ in ids)

    text = AnswerText(decode, (), ["zzz"])
    for _ in range(2000):
        text.push(21)
    assert longest <= 8
