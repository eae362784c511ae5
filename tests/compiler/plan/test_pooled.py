"""Columns behind max-pools end at convolutions in pooled form, where that costs less; always exactly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.plan.pooled import with_pooled_columns
from hbpcompiler.compiler.plan.steps import Close
from hbpcompiler.compiler.plan.walk import Walk
from hbpcompiler.reference import reference
from tests import stages
from tests.agreement import agree, close


def check(model, X, y, quantities=("diag_ggn", "diag_h")):
    compiled = hbp.compile(model, quantities=list(quantities))
    result = compiled(X, y)
    agree(result, model, nn.CrossEntropyLoss(), [X], y, quantities)
    return compiled.code


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
ADAPTIVE = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}


@given(seed=st.integers(0, 2**31), axes=st.integers(1, 3), kernel=st.integers(2, 3), stride=st.integers(1, 3),
       padding=st.integers(0, 1), channels=st.integers(1, 3), groups=st.booleans(), samples=st.integers(1, 3),
       between=st.lists(st.sampled_from([nn.ReLU, nn.Tanh, nn.Softplus]), max_size=2))
def test_random_pools(seed, axes, kernel, stride, padding, channels, groups, samples, between):
    torch.manual_seed(seed)
    front = nn.Sequential(
        CONVOLUTIONS[axes](2, 2 * channels, 2, groups=2 if groups else 1),
        *[activation() for activation in between],
        POOLS[axes](kernel, stride, padding=padding),
        nn.Flatten(),
    ).double()
    X, y = draw(samples, 2, *[5] * axes), torch.randint(0, 3, (samples,))
    width = front(X).shape[1]
    model = nn.Sequential(*front, nn.Linear(width, 2), nn.Sigmoid(), nn.Linear(2, 3)).double()
    check(model, X, y)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_adaptive_pools(axes):
    torch.manual_seed(0)
    model = nn.Sequential(CONVOLUTIONS[axes](1, 2, 2), nn.ReLU(), ADAPTIVE[axes](2), nn.Flatten(),
                          nn.Linear(2 ** (axes + 1), 3)).double()
    check(model, draw(2, 1, *[5] * axes), torch.tensor([0, 2]))


def wide(*layers):
    """Large enough for pooled columns to be worth it: 16 positions of 256 in each of 8 channels."""
    return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), *layers, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(128, 20),
                         nn.Sigmoid(), nn.Linear(20, 3)).double()


@pytest.mark.parametrize("layers", [[], [nn.ReLU()], [nn.ReLU(), nn.LeakyReLU()]], ids=["bare", "relu", "two"])
def test_pooled_columns_are_taken_where_they_cost_less(layers):
    torch.manual_seed(0)
    model, X, y = wide(*layers), draw(2, 2, 16, 16), torch.tensor([0, 2])
    compiled = hbp.compile(model, quantities=["diag_h"], example_inputs=(X, y))
    assert "pooled_S" in compiled.code
    assert "pooled_R" in compiled.code
    # Nothing of the size of the convolution's output is made for a column that ends there.
    assert not [line for line in compiled.code.splitlines() if "# [N, 20, 8, 16, 16]" in line]
    weight = model[0].weight
    found, slope = compiled(X, y).diag_h["0.weight"], torch.autograd.grad(
        nn.functional.cross_entropy(model(X), y), weight, create_graph=True)[0].flatten()
    expected = torch.stack([torch.autograd.grad(slope[i], weight, retain_graph=True)[0].flatten()[i]
                            for i in range(len(slope))])
    close(found.flatten(), expected, "diag_h")


def test_a_value_that_fans_out_is_not_pooled():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(8, 3)

        def forward(self, x):
            h = torch.relu(self.inner(x))
            pooled = nn.functional.max_pool2d(h, 8).flatten(1)
            return self.outer(torch.cat([h.amax((2, 3)), pooled + h.mean((2, 3))], 1))

    torch.manual_seed(0)
    assert "pooled" not in check(Both().double(), draw(2, 1, 8, 8), torch.tensor([0, 2]), ["diag_ggn"])


def test_kronecker_factors_keep_all_positions():
    torch.manual_seed(0)
    model, X, y = wide(nn.ReLU()), draw(2, 2, 16, 16), torch.tensor([0, 2])
    together = hbp.compile(model, quantities=["diag_ggn", "kflr"])(X, y)
    alone = hbp.compile(model, quantities=["kflr"])(X, y)
    close(together.kflr["0.weight"].B, alone.kflr["0.weight"].B, "B")
    for key, value in reference(model, nn.CrossEntropyLoss(), [X], y, "diag_ggn").items():
        close(together.diag_ggn[key], value, key)


def test_columns_in_chunks():
    """So many columns that they travel in loops, the pool inside."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(512, 300),
                          nn.Sigmoid(), nn.Linear(300, 3)).double()
    X, y = draw(3, 1, 32, 32), torch.tensor([0, 2, 1])
    compiled = hbp.compile(model, quantities=["diag_h"], memory_budget="16MiB")
    found = compiled(X, y).diag_h["0.weight"]
    assert "pooled_R" in compiled.code
    assert "for first in range(" in compiled.code
    weight = model[0].weight
    slope = torch.autograd.grad(nn.functional.cross_entropy(model(X), y), weight, create_graph=True)[0].flatten()
    expected = torch.stack([torch.autograd.grad(slope[i], weight, retain_graph=True)[0].flatten()[i]
                            for i in range(len(slope))])
    close(found.flatten(), expected, "diag_h")


def pooled_steps(between, **limits):
    """The walk's steps for a convolution in front of a max-pool, after the rewrite, and the pools."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), *between, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    found = stages.matched(model, torch.randn(2, 1, 6, 6), torch.tensor([0, 1]), quantities=("diag_ggn",))
    resources = Resources(limits=hbp.Limits(**limits))
    steps = Walk(found, stages.closings("diag_ggn"), stages.options("diag_ggn"), resources).run()
    return with_pooled_columns(steps, found.rules, found.static)


@pytest.mark.parametrize("between", [(), (nn.ReLU(),), (nn.Tanh(), nn.ReLU())])
def test_where_it_costs_less_the_closing_takes_the_pools_columns(between):
    steps, pools = pooled_steps(between, pooled_time=10**6)
    (pooled, *_) = [step for step in steps if isinstance(step, Close) and step.pooled]
    assert pooled.parameter.key == "0.weight"
    assert pooled.site.size("p") == 4  # of 16 positions
    assert len(pools) == 1 + len(between)  # the values on the way
    assert {operation.source.module for operation in pools.values()} == {str(1 + len(between))}


def test_elsewhere_the_steps_stay_as_they_are():
    steps, pools = pooled_steps((nn.ReLU(),), pooled_time=0)
    assert not pools
    assert not any(isinstance(step, Close) and step.pooled for step in steps)
