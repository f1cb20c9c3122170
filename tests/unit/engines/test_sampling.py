"""The noise is what it says, and its argmax has the distribution that it should have."""

import math

import pytest
import torch

from llava_grpc.core.prompt import Sampling
from llava_grpc.engines.sampling import Draw, Row, gumbel_noise, sample_in_place, stream_key

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5, -3.0, 0.5, 0.0])


def frequencies(draw_of, count: int = 20_000) -> torch.Tensor:
    """Relative frequencies of tokens over many draws."""
    rows = [Row(index, draw_of(index), index % 50) for index in range(count)]
    chosen = sample_in_place(LOGITS.repeat(count, 1), rows).argmax(1)
    return torch.bincount(chosen, minlength=len(LOGITS)) / count


def chi_square(observed: torch.Tensor, expected: torch.Tensor, count: int) -> tuple[float, float]:
    """The statistic, and what it exceeds in about one case of 100,000 (Wilson and Hilferty's approximation)."""
    live = expected > 0
    assert observed[~live].sum() == 0
    statistic = float(count * ((observed - expected)[live] ** 2 / expected[live]).sum())
    freedom = int(live.sum()) - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 4.3 * math.sqrt(2 / (9 * freedom))) ** 3 if freedom else 1e-6
    return statistic, bound


def filtered(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> torch.Tensor:
    """The distribution, computed in the plainest way."""
    probabilities = (LOGITS / temperature).softmax(0)
    order = probabilities.argsort(descending=True)
    if top_k:
        probabilities[order[top_k:]] = 0
        probabilities /= probabilities.sum()
    kept, held = [], 0.0
    for token in order.tolist():
        if held < top_p:
            kept.append(token)
        held += float(probabilities[token])
    result = torch.zeros_like(probabilities)
    result[kept] = probabilities[kept]
    result[result < min_p * result.max()] = 0
    return result / result.sum()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 4},
        {"top_p": 0.8},
        {"top_k": 6, "top_p": 0.6},
        {"min_p": 0.2},
        {"min_p": 0.1, "temperature": 2.0, "top_k": 6},
    ],
    ids=str,
)
def test_draws_have_the_right_distribution(options):
    count = 20_000
    got = frequencies(
        lambda seed: Draw(
            seed,
            options.get("temperature", 1.0),
            options.get("top_p", 1.0),
            options.get("top_k", 0),
            options.get("min_p", 0.0),
        ),
        count,
    )
    statistic, bound = chi_square(got, filtered(**options), count)
    assert statistic < bound


def test_positions_of_one_seed_are_independent_draws_too():
    count = 20_000
    rows = [Row(index, Draw(7, 1.0), index) for index in range(count)]
    chosen = sample_in_place(LOGITS.repeat(count, 1), rows).argmax(1)
    statistic, bound = chi_square(torch.bincount(chosen, minlength=8) / count, filtered(), count)
    assert statistic < bound
    pairs = torch.bincount(chosen[:-1] * 8 + chosen[1:], minlength=64) / (count - 1)
    expected = (filtered()[:, None] * filtered()).flatten()
    statistic, bound = chi_square(pairs, expected, count - 1)
    assert statistic < bound


def test_the_noise_is_gumbel():
    noise = gumbel_noise([stream_key(seed, 3) for seed in range(100)], 2000)
    assert noise.isfinite().all()
    assert noise.mean() == pytest.approx(0.57722, abs=0.01)
    assert noise.var() == pytest.approx(math.pi**2 / 6, abs=0.03)
    for quantile in (0.01, 0.5, 0.99, 0.9999):
        share = (noise < -math.log(-math.log(quantile))).float().mean()
        assert share == pytest.approx(quantile, abs=0.005)


def test_a_draw_depends_on_seed_and_position_alone():
    scores = torch.randn(5, 300)
    rows = [Row(index, Draw(40 + index, 0.9, 0.9, 50), 11) for index in range(5)]
    together = sample_in_place(scores.clone(), rows).argmax(1)
    for index, row in enumerate(rows):
        alone = sample_in_place(scores[index : index + 1].clone(), [Row(0, row.draw, 11)])
        assert alone.argmax() == together[index]


def test_keys_differ_in_seed_and_position():
    keys = {stream_key(seed, position) for seed in [0, 1, 2, 2**63, 2**64 - 1] for position in range(1000)}
    assert len(keys) == 5000


def test_the_noise_is_the_same_on_every_machine():
    noise = gumbel_noise([stream_key(1, 0)], 3)[0].tolist()
    assert noise == pytest.approx([-0.469145, 0.633662, -1.815857], rel=1e-5)


def test_greedy_rows_are_untouched_bit_for_bit():
    scores = torch.randn(4, 100)
    original = scores.clone()
    assert sample_in_place(scores, []) is scores
    mixed = sample_in_place(scores, [Row(1, Draw(1, 1.0), 0), Row(3, Draw(2, 0.5, 0.9), 4)])
    assert torch.equal(mixed[[0, 2]], original[[0, 2]])
    assert not torch.equal(mixed[1], original[1])


def test_rows_with_different_options_do_not_mix():
    scores = LOGITS.repeat(4, 1)
    got = sample_in_place(
        scores,
        [
            Row(0, Draw(1, 1.0, 1.0, 2), 0),
            Row(1, Draw(1, 1.0), 0),
            Row(2, Draw(1, 1.0, 0.5), 0),
            Row(3, Draw(1, 1.0, min_p=0.3), 0),
        ],
    )
    kept = [2, 8, int((filtered(top_p=0.5) > 0).sum()), int((filtered(min_p=0.3) > 0).sum())]
    assert [int(row.isfinite().sum()) for row in got] == kept


def test_a_flat_distribution_needs_more_than_the_first_candidates():
    scores = torch.zeros(1, 1000) + torch.linspace(0, 1e-3, 1000)
    kept = sample_in_place(scores, [Row(0, Draw(1, 1.0, 0.5), 0)]).isfinite().sum()
    assert 490 <= kept <= 510


def test_top_k_of_one_is_the_likeliest_token_whatever_the_noise():
    scores = LOGITS.repeat(500, 1)
    rows = [Row(index, Draw(index, 5.0, 1.0, 1), 0) for index in range(500)]
    assert (sample_in_place(scores, rows).argmax(1) == 0).all()


def test_greedy_requests_have_no_draw():
    assert Draw.of(Sampling(temperature=0.001, seed=3)) is None
    assert Draw.of(Sampling(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, seed=3)) == Draw(3, 0.5, 0.5, 3, 0.1)
