"""Numbers that follow from samples' keys: SplitMix64's own, of the distributions that they are of."""

import pytest
import scipy.stats
import torch

from hbpcompiler.compiler.program import draws

KEYS = torch.arange(4000) * 977


def test_uniform_numbers_are_those_of_splitmix64():
    """The first outputs from the state 1234567, as its authors' program has them."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    uniform = draws.uniform_of_samples(torch.tensor([1234567]), 0, 0, [3])
    assert uniform.tolist() == [((number >> 12) + 0.5) / 2**52 for number in known]


def test_a_sample_draws_the_same_in_any_batch_axis_and_company():
    whole = draws.uniform_of_samples(KEYS[:6], 3, 0, [6, 2, 5])
    assert torch.equal(draws.uniform_of_samples(KEYS[4:6], 3, 0, [2, 2, 5]), whole[4:])
    assert torch.equal(draws.uniform_of_samples(KEYS[:6], 3, 1, [2, 6, 5]), whole.movedim(0, 1))
    assert torch.equal(draws.uniform_of_samples(KEYS[:6], 3, 0, [12, 5]), whole.reshape(12, 5))
    assert not torch.equal(draws.uniform_of_samples(KEYS[:6], 4, 0, [6, 2, 5]), whole)


@pytest.mark.parametrize("rate", [0.0, 0.3, 7.0, 4e4])
def test_poisson_numbers(rate):
    drawn = draws.poisson_of_samples(KEYS, 0, 0, torch.full((4000, 2), rate, dtype=torch.float64))
    uniform = draws.uniform_of_samples(KEYS, 0, 0, [4000, 2])
    assert torch.equal(drawn, torch.from_numpy(scipy.stats.poisson.ppf(uniform.numpy(), rate)).clamp(min=0))


def test_the_others():
    normal = draws.normal_of_samples(KEYS, 0, 0, torch.empty(4000, 3, dtype=torch.float32))
    assert normal.dtype == torch.float32
    assert scipy.stats.kstest(normal.double().flatten().numpy(), "norm").pvalue > 1e-3
    rows = torch.tensor([[0.0, 0.5, 0.2, 0.3, 0.0]]).repeat(8000, 1)
    labels = draws.labels_of_samples(KEYS, 1, 0, rows, 3)
    assert labels.shape == (8000, 3)
    counts = labels.flatten().bincount(minlength=5)
    assert counts[0] == counts[4] == 0
    assert scipy.stats.chisquare(counts[1:4].numpy(), [12000, 4800, 7200]).pvalue > 1e-3
    for drawn in (draws.bernoulli_of_samples(KEYS, 2, 0, torch.empty(4000, 4), 0.3),
                  draws.bernoulli_of_samples(KEYS, 2, 0, torch.full((4000, 4), 0.3))):
        assert set(drawn.flatten().tolist()) == {0.0, 1.0}
        assert abs(drawn.mean() - 0.3) < 0.02
    kept = draws.dropout_of_samples(KEYS, 3, 0, torch.ones(4000, 4), 0.2)
    assert set(kept.flatten().tolist()) == {0.0, 1.25}
    assert abs(kept.mean() - 1) < 0.02
    assert not draws.dropout_of_samples(KEYS, 3, 0, torch.ones(4000, 4), 1.0).any()
    for dtype in (torch.float32, torch.bfloat16):  # rounded to nothing, so never to 1
        steps = 2 / torch.finfo(dtype).eps
        drawn = draws.steps_of_samples(KEYS, 5, 0, [4000, 5], steps)
        assert torch.equal(drawn, drawn.to(dtype).double())
        assert 0 <= drawn.min() < drawn.max() < 1
        assert abs(drawn.mean() - 0.5) < 0.01
        like = draws.steps_like_samples(KEYS, 5, 0, torch.empty(4000, 5, dtype=dtype), steps)
        assert torch.equal(like, drawn.to(dtype))
    between = draws.steps_of_samples(KEYS, 6, 0, [4000, 5], 2.0**53, -3.0, 1.0).flatten().numpy()
    assert scipy.stats.kstest(between, scipy.stats.uniform(-3, 4).cdf).pvalue > 1e-3
    spread = draws.normals_of_samples(KEYS, 7, 0, [4000, 3], 2.0, 0.5).flatten().numpy()
    assert scipy.stats.kstest(spread, scipy.stats.norm(2, 0.5).cdf).pvalue > 1e-3
    around = draws.normal_around_samples(KEYS, 7, 0, torch.full((4000, 3), 2.0), torch.full((4000, 3), 0.5))
    torch.testing.assert_close(around.double().flatten(), torch.from_numpy(spread), rtol=1e-6, atol=1e-6)
    whole = draws.integers_of_samples(KEYS, 4, 0, -1, 2, [4000, 2])
    assert whole.dtype == torch.int64
    assert whole.flatten().unique().tolist() == [-1, 0, 1]
    assert abs(whole.double().mean()) < 0.03


def test_signs():
    signs = draws.signs_of_samples(KEYS, 2, [3, 50], torch.empty(0, dtype=torch.float64))
    assert set(signs.unique().tolist()) == {-1, 1}
    assert signs.mean().abs() < 5 / signs.numel() ** 0.5
    together = torch.cat([signs.flatten(1), draws.signs_of_samples(KEYS, 3, [150], signs)], 1)
    alike = together.T @ together / len(KEYS) - torch.eye(300)
    assert alike.abs().max() < 6 / len(KEYS) ** 0.5
    assert torch.equal(draws.signs_of_samples(KEYS[7:9], 2, [3, 50], signs), signs[7:9])
