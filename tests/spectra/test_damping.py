"""Damping chosen by the bootstrap: what it must do where the answer is known."""

import torch

import hbpcompiler as hbp


def test_without_noise_the_smallest_damping_gains_most():
    """The Newton step itself: half of slope^2 / curvature."""
    slopes, curvatures = torch.full((8, 2), 0.5), torch.tensor([[2.0, 3.0]]).expand(8, 2)
    found = hbp.bootstrap([10.0, 0.1, 1.0])(torch.tensor([2.0, 3.0]), slopes, curvatures)
    assert found.tolist() == [torch.tensor(0.1).item()] * 2


def test_noise_alone_is_no_reason_to_step():
    slopes = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    found = hbp.bootstrap([0.1, 1.0])(torch.ones(2).double(), slopes, torch.ones(4, 2).double())
    assert found.tolist() == [torch.inf, 0.1]


def test_the_percentile_is_that_of_the_gains():
    """With every draw the same but for curvature 0 or 2, against the definition with the draws' means known."""
    torch.manual_seed(0)
    slopes, curvatures = torch.randn(5, 3).double() + 1, torch.rand(5, 3).double() + 0.1
    values, grid = curvatures.mean(0), torch.tensor([0.01, 0.1, 1.0, 10.0]).double()
    found = hbp.bootstrap(grid, 40, 20.0, torch.Generator().manual_seed(7))(values, slopes, curvatures)

    generator = torch.Generator().manual_seed(7)

    def means(numbers):
        return torch.stack([numbers[row].mean(0) for row in torch.randint(5, (40, 5), generator=generator)])

    step_g, step_h, g, h = (means(numbers) for numbers in (slopes, curvatures, slopes, curvatures))
    for k in range(3):
        gains = []
        for delta in grid:
            tau = -step_g[:, k] / (step_h[:, k] + delta)
            gains.append(float((-g[:, k] * tau - h[:, k] * tau**2 / 2).quantile(0.2)))
        best = max(gains)
        assert found[k] == (grid[gains.index(best)] if best >= 0 else torch.inf)


def test_a_sums_scale_is_that_of_its_eigenvalues():
    torch.manual_seed(0)
    slopes, curvatures = torch.randn(6, 2).double() + 1, torch.rand(6, 2).double() + 0.1
    mean, total = curvatures.mean(0), curvatures.sum(0)
    grid = torch.logspace(-3, 2, 20).double()
    found = hbp.bootstrap(grid)(mean, slopes, curvatures)
    assert torch.equal(hbp.bootstrap(6 * grid)(total, slopes, curvatures), 6 * found)


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    slopes, curvatures = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.ones(6, 2)
    again = [hbp.bootstrap()(torch.ones(2), slopes, curvatures) for _ in range(2)]
    assert torch.equal(*again)
    assert torch.equal(torch.get_rng_state(), state)
    generator = torch.Generator().manual_seed(1)
    hbp.bootstrap(generator=generator)(torch.ones(2), slopes, curvatures)
    assert not torch.equal(generator.get_state(), torch.Generator().manual_seed(1).get_state())
