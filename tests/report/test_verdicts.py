"""Verdicts: what they say of given numbers, and that the numbers behind them are right."""

import math

import pytest
import torch

from hbpcompiler.report.verdicts import auxiliary, curvature, general, gradients, step_size
from hbpcompiler.report.words import number, share
from tests.selection import few

SGD = {"name": "SGD", "lr": 0.1}


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_numbers_in_words():
    said = {1200.4: "1200", 123456.0: "123000", 1234567.0: "1.23e6", 0.0032: "0.0032", 3.14e-7: "3.14e-7", 0.0: "0",
            -2.5: "-2.5", 100.0: "100", 0.99999: "1", 9.999: "10", math.inf: "inf", math.nan: "nan", 0.00012: "0.00012"}
    assert [number(value) for value in said] == list(said.values())
    assert share(0.0342) == "3.4 %"


@pytest.mark.parametrize(("values", "words", "notable"), [
    ((-0.9, -0.8, -0.7), "far short", True), ((-0.4, -0.3, -0.2), "a little short", False),
    ((0.05, 0.1, 0.2), "near the lowest", False), ((0.6, 0.7, 0.8), "other side of the valley", False),
    ((1.5, 1.2, 3.0), "smaller step size is worth a try", True),
    ((0.1, 0.2, 0.1, 5.0, 6.0, 0.1), "33 % end uphill", True),
])
def test_alpha(values, words, notable):
    verdict = step_size.alpha(numbers(*values))
    assert words in verdict.text
    assert verdict.notable == notable


def test_short_steps_of_a_rate_that_was_lowered_are_no_news():
    verdict = step_size.alpha(numbers(-0.9, -0.95, -1), 0.03)
    assert "far short of the lowest point, with a learning rate at 3 % of its largest" in verdict.text
    assert not verdict.notable
    assert step_size.alpha(numbers(-0.9, -0.95, -1), 0.6).notable


def test_a_random_walk_is_told_from_a_straight_path():
    generator = torch.Generator().manual_seed(0)
    steps, size = 400, 500
    walk = torch.randn(steps, size, generator=generator, dtype=torch.float64)
    length = walk.norm(dim=1).sum().item()
    wandering = step_size.distance(walk.sum(0).norm().item(), length, steps)
    assert "no straighter than a random walk (5 %)" in wandering.text
    assert not wandering.notable
    back = walk - 0.8 * walk.roll(1, 0)
    oscillating = step_size.distance(back.sum(0).norm().item(), back.norm(dim=1).sum().item(), steps)
    assert oscillating.notable
    assert "it oscillates" in oscillating.text
    walk += 2 * torch.randn(size, generator=generator, dtype=torch.float64)
    straight = step_size.distance(walk.sum(0).norm().item(), walk.norm(dim=1).sum().item(), steps)
    assert "random" not in straight.text
    assert not straight.notable
    assert step_size.distance(7.0, 1.0, 40).text == "7 from the start", "the path is not known"
    assert "do not move" in step_size.distance(0.0, 0.0, 10).text


def test_the_length_of_a_path_from_some_of_its_updates():
    assert step_size.path_length(numbers(1, 3), 0, 9) == (20.0, 10)


def test_the_gradients_norm():
    assert "explodes" in step_size.gradient_norm(1.0, 1000.0).text
    assert "plateau" in step_size.gradient_norm(1.0, 1e-6).text
    assert step_size.gradient_norm(2.0, 0.5).text == "0.5 lately, 2 at first"
    assert step_size.gradient_norm(2.0, 0.0).notable


@pytest.mark.parametrize("rows", [16, 64, 400])
def test_the_norm_test_needs_as_many_samples_as_make_it_one(rows):
    """On drawn gradients with a known need of 200 samples: rows * test^2 would say that the batch is about enough."""
    generator = torch.Generator().manual_seed(0)
    size, spread = 100, 2.0
    mean = torch.full((size,), spread / math.sqrt(200), dtype=torch.float64)
    tests, norms = [], []
    for _ in range(400):
        drawn = mean + spread * torch.randn(rows, size, generator=generator, dtype=torch.float64)
        average = drawn.mean(0)
        norms.append(average.norm())
        tests.append(((drawn - average).square().sum() / (rows * (rows - 1))).sqrt() / average.norm())
    needed, at_least = gradients.samples_needed(torch.stack(tests), torch.stack(norms), rows)
    assert not at_least
    assert needed == pytest.approx(200, rel=0.1)
    few, bound = gradients.samples_needed(torch.stack(tests[:5]), torch.stack(norms[:5]), rows)
    assert few < 300 if bound else few == pytest.approx(200, rel=0.6)


def test_noise_in_words():
    ones = torch.ones(6, dtype=torch.float64)
    assert gradients.noise(0.5 * ones, ones, 90).text == "noise: the norm test needs about 30 samples, the batch has 90"
    assert not gradients.noise(0.5 * ones, ones, 90).notable
    unknown = gradients.noise(3.06 * ones, ones, 128)
    assert unknown.text == "noise: the norm test needs more than 1200 samples, the batch has 128"
    assert unknown.notable
    assert gradients.noise(numbers(0.5), numbers(1.0), 90).text.endswith("needs about 30 samples, the batch has 90")
    assert "standard error 3 of" in gradients.noise(3.0 * ones, ones, None).text


def test_the_direction_of_the_noise():
    assert "across the gradient (3) rather than" in gradients.direction(1.0, 3.0).text
    assert "along the gradient (3) rather than" in gradients.direction(3.0, 1.0).text
    assert "about as large" in gradients.direction(1.0, 1.1).text


def test_entries_of_gradients():
    edges = numbers(-10, -1, -0.1, 0.1, 1, 10)
    assert gradients.entries(numbers(0, 30, 40, 30, 0), edges).text == "90 % of the entries lie between -1 and 1"
    wide = gradients.entries(numbers(20, 10, 40, 10, 20), edges)
    assert "40 % of the entries lie in the outermost bins (beyond -1 or 1)" in wide.text
    assert wide.notable
    magnitudes = numbers(-1.5, -1, -0.75, 0.75, 1, 1.5)
    counts = numbers(20, 10, 40, 10, 20)
    assert "outermost" not in gradients.entries(counts, magnitudes).text, "empty bins were left out"
    assert "outermost" in gradients.entries(counts, magnitudes * 2**24).text
    one_side = numbers(-(2**-40), 2**-40, 1, 2**23, 1.5 * 2**23, 2**24)
    alone = gradients.entries(numbers(30, 30, 30, 0, 10), one_side)
    assert "10 % of the entries lie in the outermost bins (beyond 1.3e7)" in alone.text, "the bin of zero is none"
    assert "outermost" not in gradients.entries(numbers(30, 30, 40, 0, 0), one_side).text
    assert "in the bin of zero" in gradients.entries(numbers(0, 1, 98, 1, 0), edges).text
    assert gradients.entries(numbers(0, 0, 0, 0, 0), edges).notable


def test_the_middle_of_a_histogram_holds_what_it_says():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20000, generator=generator, dtype=torch.float64)
    counts, edges = torch.histogram(values, 400, range=(-6.0, 6.0))
    low, high = gradients.middle(counts, edges)
    for edge, quantile in ((low, 0.05), (high, 0.95)):
        assert edge == pytest.approx(values.quantile(quantile).item(), abs=0.031), "within the width of a bin"
    assert ((values > low) & (values < high)).double().mean() >= 0.9 - 1e-9


def test_layers_against_each_other():
    apart = gradients.layer_spread({"0.weight": 1e-9, "2.weight": 0.1})
    assert "8 orders of magnitude" in apart.text
    assert apart.notable
    assert not gradients.layer_spread({"0.weight": 0.05, "2.weight": 0.1}).notable
    assert "a and 1 more have a gradient of zero" in gradients.layer_spread({"a": 0.0, "b": 0.0, "c": 1.0}).text


@few(1, "further cases of one kind")
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"momentum": 0.8, "nesterov": True},
                                      {"weight_decay": 3.0}, {"momentum": 0.5, "weight_decay": 2.0}])
def test_the_edge_of_stability_is_where_steps_begin_to_diverge(settings):
    """torch's own optimizer on a parabola: a little below the edge it converges, a little above it does not."""
    edge, _ = curvature.edge_of_stability(SGD | settings, 0.1)

    def end(sharpness):
        x = torch.ones((), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([x], lr=0.1, **settings)
        for _ in range(3000):
            optimizer.zero_grad()
            (0.5 * sharpness * x * x).backward()
            optimizer.step()
        return abs(x.item())

    assert end(0.99 * edge) < 1e-3
    assert not end(1.01 * edge) < 1e3


def test_sharpness():
    edge = curvature.edge_of_stability(SGD, 0.1)
    assert curvature.sharpness(35.0, edge).text == (
        "sharpest direction 35, 2 / step size is 20: above the edge of stability")
    assert curvature.sharpness(35.0, edge).notable
    assert "at the edge" in curvature.sharpness(19.0, edge).text
    assert "below the edge" in curvature.sharpness(3.0, edge).text
    for optimizer in ({"name": "Adam"}, SGD | {"maximize": True}, SGD | {"momentum": 0.9, "dampening": 0.1}, {}):
        assert curvature.edge_of_stability(optimizer, 0.1) is None
    assert curvature.edge_of_stability(SGD, math.nan) is None
    assert curvature.sharpness(35.0, None).text == "sharpest direction 35"


def test_mean_curvature():
    assert curvature.mean_curvature(50.0, 100, 10.0).text == (
        "trace 50, 0.5 in the mean of 100 directions; the sharpest is 20 times as curved")
    assert curvature.mean_curvature(-5.0, 100, None).notable
    assert curvature.mean_curvature(5.0, None, None).text == "trace 5"


def test_takeuchi_says_what_is_known_of_it():
    assert curvature.takeuchi((4.0, 2.0), None).text == "noise over curvature by entries 2 lately, 4 at first"
    assert "; by traces 1 lately, 3 at first" in curvature.takeuchi((4.0, 2.0), (3.0, 1.0)).text
    assert curvature.takeuchi(None, None) is None


def test_auxiliary():
    assert auxiliary.batch_size(338.0, 128).text == "CABS suggests a batch of about 340, the batch has 128"
    assert auxiliary.stopping(0.1, 1.0).notable
    assert "above zero in 20 %" in auxiliary.stopping(-0.1, 0.2).text
    assert auxiliary.stopping(-0.1, 0.0).text == "-0.1, below zero: the gradient is more than noise"
    assert auxiliary.signal_to_noise(0.0123).text.startswith("signal to noise 0.012")


def test_what_is_not_finite():
    assert general.not_finite(0, 0, 10) is None
    assert general.not_finite(3, 7, 10).text == "3 of 10 values are not finite, the first at step 7"
    assert general.not_finite(10, 0, 10).text == "no value is finite, from step 0 on"
