"""Answers cut where streams are cut, and continued from their token log: the law of exact resume, as a check."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llava_grpc.core.prompt import Conversation, Image, Prompt, RawPrompt, Role, Sampling, Turn
from llava_grpc.core.stream import Delta
from llava_grpc.engines.base import Engine
from llava_grpc.testing.reference import Answer, submit

LOGPROB_TOLERANCE = 1e-3
END = 2
"""The end token of the models that are cut."""
QUESTIONS = ("What is this?", "How many shapes are there?", "Describe it: größer, 猫?", "Hm")


@dataclass(frozen=True)
class Case:
    """A request, and the random source of its cuts."""

    name: str
    prompt: Prompt
    sampling: Sampling


def case(seed: int, pictures: Sequence[Image], longest: int = 24) -> Case:
    """A random request: greedy or sampled, with or without pictures, with any options."""
    chance = random.Random(seed)
    shown = chance.sample(pictures, chance.choice((0, 1, 1, 2)))
    question = f"{chance.choice(QUESTIONS)} {chance.randrange(1000)}"
    prompt: Prompt = Conversation((Turn(Role.USER, (*shown, question)),))
    if chance.random() < 0.2:
        prompt = RawPrompt("<image>" * len(shown) + question, tuple(shown))
    biases = {id_: chance.uniform(-9, 9) for id_ in chance.sample(range(500), 20)} if chance.random() < 0.3 else {}
    if chance.random() < 0.3:  # else a model of random weights never ends
        biases[END] = chance.uniform(2, 9)
    sampling = Sampling(
        temperature=chance.choice((0.0, 0.0, 0.7, 1.0, 1.5)),
        top_p=chance.choice((1.0, 0.9, 0.6)),
        top_k=chance.choice((0, 0, 5, 50)),
        max_new_tokens=(most := chance.randint(1, longest)),
        seed=chance.randrange(2**64),
        min_p=chance.choice((0.0, 0.0, 0.05)),
        repetition_penalty=chance.choice((1.0, 1.0, 1.3, 0.8)),
        presence_penalty=chance.choice((0.0, 0.0, 1.5, -0.5)),
        frequency_penalty=chance.choice((0.0, 0.0, 0.7, -0.3)),
        logit_bias=tuple(sorted(biases.items())),
        min_new_tokens=chance.choice((0, 0, min(6, most), most)),
        ignore_eos=chance.random() < 0.3,
        stop_token_ids=tuple(chance.sample(range(4, 500), chance.choice((0, 0, 40)))),
        logprobs=chance.choice((None, None, 0, 3)),
    )
    return Case(f"seed {seed}", prompt, sampling)


def with_stop(one: Case, whole: Answer, seed: int) -> Case:
    """The request with stop strings: one that its answer is known to contain, and one that only begins in it."""
    chance, text = random.Random(seed), whole.text
    if not text:
        return one
    begin = chance.randrange(len(text))
    end = begin + chance.randint(1, 4)
    near = text[chance.randrange(len(text)) :][:2] + "\x00"
    return replace(one, sampling=replace(one.sampling, stop=(text[begin:end], near)))


def cuts_of(whole: Answer, seed: int, count: int) -> list[int]:
    """Numbers of Deltas after which to cut: always before the first and after the last, and others drawn."""
    deltas = len(whole.deltas)
    inner = range(1, deltas)
    drawn = random.Random(seed).sample(inner, min(count, len(inner)))
    return sorted({0, deltas, *drawn})


def check_replays(
    engine: Engine, seeds: Sequence[int], pictures: Sequence[Image], cuts: int, longest: int = 24
) -> tuple[int, list[Answer]]:
    """Random requests, one a seed and one more with stop strings taken from its answer, each cut several times.

    Returns how many continuations were compared, and the whole answers.
    """
    cases = [case(seed, pictures, longest) for seed in seeds]
    wholes = [submit(engine, one.prompt, one.sampling) for one in cases]
    stopped = [with_stop(one, whole.wait(), seed) for one, whole, seed in zip(cases, wholes, seeds, strict=True)]
    more = [submit(engine, one.prompt, one.sampling) for one in stopped]
    for answer in more:
        answer.wait()
    compared = 0
    for seed, one, whole in zip([*seeds, *seeds], cases + stopped, wholes + more, strict=True):
        chosen = cuts_of(whole, seed, cuts)
        check_replay(one, whole, engine, chosen)
        compared += len(chosen)
    return compared, wholes + more


def kinds_of_end(answers: Sequence[Answer]) -> set[str]:
    """How the answers ended, and whether tokens were held back in any: what a set of them covers."""
    kinds = set()
    for answer in answers:
        kinds.add("stop string" if answer.end.stop_sequence else answer.end.reason.value)
        if any(len(delta.token_ids) > 1 for delta in answer.deltas):
            kinds.add("held back")
        if answer.end.stop_sequence and answer.end.usage.completion_tokens > len(answer.token_ids) > 0:
            kinds.add("tokens of the stop string undelivered")
    return kinds


def check_replay(one: Case, whole: Answer, engine: Engine, cuts: Sequence[int]) -> None:
    """Raises AssertionError unless the answer continued after each of the cuts is the rest of the whole one."""
    rests = []
    for cut in cuts:
        log = [token_id for delta in whole.deltas[:cut] for token_id in delta.token_ids]
        rests.append((cut, log, submit(engine, one.prompt, one.sampling, emitted=log)))
    for cut, log, rest in rests:
        rest.wait()
        where = f"{one.name}, {one.sampling}, cut after {cut} of {len(whole.deltas)} deltas, {len(log)} tokens"
        assert [_bare(delta) for delta in rest.deltas] == [_bare(delta) for delta in whole.deltas[cut:]], where
        assert rest.end == whole.end, where
        told = [entry for delta in whole.deltas[cut:] for entry in delta.logprobs]
        again = [entry for delta in rest.deltas for entry in delta.logprobs]
        assert len(told) == len(again) == (0 if one.sampling.logprobs is None else len(rest.token_ids)), where
        for first, second in zip(told, again, strict=True):
            assert (first.token_id, first.utf8) == (second.token_id, second.utf8), where
            assert abs(first.logprob - second.logprob) < LOGPROB_TOLERANCE, where
            for one_, other in zip(first.top, second.top, strict=True):
                assert abs(one_.logprob - other.logprob) < LOGPROB_TOLERANCE, where


def _bare(delta: Delta) -> Delta:
    """Without its log-probabilities, whose last bits depend on what else is in a batch."""
    return replace(delta, logprobs=())
