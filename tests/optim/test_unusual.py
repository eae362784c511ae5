"""Models, groups and batches that are unlike the usual, each step against dense linear algebra in float64."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.optim.models import (
    blocks,
    chain,
    close,
    flat,
    gradient,
    mean_loss,
    tokens,
    values,
    whole_ggn,
    whole_hessian,
)
from tests.selection import slow

NOW = {"momentum": 0.0, "split": "exact", "update_every": 1, "invert_every": 1, "ema": 0.0}
"""This batch's curvature alone, and no draws."""


class Twice(nn.Module):
    """One layer that is met at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.first(torch.tanh(self.first(x)))))


def twice():
    torch.manual_seed(0)
    return Twice().double(), torch.randn(5, 3).double(), torch.randint(2, (5,))


def moved(model, before):
    return flat({name: value - before[name] for name, value in values(model).items()})


def kflr(model, X, y):
    return hbp.curvature(hbp.compile(model, mean_loss, ["kflr"], joint_bias=True)(X, y).kflr)


def test_a_layer_that_is_met_twice():
    """By the diagonal of its GGN, and by its block of the Hessian."""
    model, X, y = twice()
    before, own = values(model), flat(gradient(model, mean_loss, X, y))
    diagonal = whole_ggn(model, mean_loss, X, y).diagonal()
    hbp.optim.Diagonal(model, None, lr=0.2, curvature="diag_ggn", momentum=0.0, damping=0.3, ema=0.0).step(X, y)
    close(moved(model, before), -0.2 * own / (diagonal + 0.3), "diagonal")

    model, X, y = twice()
    H, own = blocks(whole_hessian(model, mean_loss, X, y), model), gradient(model, mean_loss, X, y)
    hbp.optim.BlockNewton(model, None, lr=1.0, curvature="hessian", damping=2.0, l2=0.1, progress=0.0,
                          most_iterations=200).step(X, y)
    for name, value in values(model).items():
        damped = H[name] + 2.1 * torch.eye(len(H[name])).double()
        expected = -torch.linalg.solve(damped, (own[name] + 0.1 * before[name]).flatten())
        close((value - before[name]).flatten(), expected, name, 1e-7)


def test_groups_with_a_frozen_layer_between_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    X, y = torch.randn(6, 3).double(), torch.randint(2, (6,))
    model[2].requires_grad_(False)
    optimizer = hbp.optim.KFLR(model, None, [{"params": model[0].parameters(), "damping": 0.1, "lr": 0.5},
                                             {"params": model[4].parameters(), "damping": 0.7}], lr=0.2, **NOW)
    before = values(model)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = flat(dict(zip(named, torch.autograd.grad(mean_loss(model(X), y), list(named.values())), strict=True)))
    first = torch.arange(len(own)) < 16
    damped = kflr(model, X, y).to_dense() + torch.where(first, 0.1, 0.7).double().diag()
    optimizer.step(X, y)
    found = torch.cat([(values(model)[name] - before[name]).flatten() for name in named])
    close(found, -torch.where(first, 0.5, 0.2).double() * torch.linalg.solve(damped, own), "step", 1e-7)
    assert torch.equal(model[2].weight, before["2.weight"])


def test_a_norm_constraint_over_groups_with_rates_of_their_own():
    model, X, y = chain()
    weights, before, own = list(model.parameters()), values(model), flat(gradient(model, mean_loss, X, y))
    direction = torch.linalg.solve(kflr(model, X, y).to_dense() + 0.3 * torch.eye(len(own)).double(), own)
    rates = torch.where(torch.arange(len(own)) < 16, 0.5, 0.2).double()
    bound = float((rates.square() * direction) @ own) / 4
    hbp.optim.KFLR(model, None, [{"params": weights[:2], "lr": 0.5}, {"params": weights[2:]}], lr=0.2, damping=0.3,
                   norm_constraint=bound, **NOW).step(X, y)
    close(moved(model, before), -rates * direction / 2, "half as long", 1e-7)


@slow("other programs of the same steps")
def test_batches_of_other_sizes_and_lengths():
    """One sample, two words, seven: factors and diagonals are each batch's."""
    model, _, _ = tokens()
    optimizer = hbp.optim.KFLR(model, None, lr=0.1, damping=0.3, largest_factor=6, **NOW)
    asked = {"kflr": ["first.*", "last.*"]}
    for samples, length in ((6, 5), (3, 2), (1, 7), (4, 1)):
        torch.manual_seed(samples)
        X, y = torch.randint(7, (samples, length)), torch.randint(3, (samples,))
        before, own = values(model), gradient(model, mean_loss, X, y)
        factors = hbp.curvature(hbp.compile(model, mean_loss, asked, joint_bias=True)(X, y).kflr)
        step = factors.solve({name: own[name] for name in own if name.startswith(("first", "last"))}, damping=0.3)
        diagonal = whole_ggn(model, mean_loss, X, y).diagonal()[:28].view(7, 4)
        optimizer.step(X, y)
        after, what = values(model), f"{samples} of length {length}"
        close(after["first.weight"] - before["first.weight"], -0.1 * step["first.weight"], what, 1e-7)
        expected = -0.1 * own["embedding.weight"] / (diagonal + 0.3)
        close(after["embedding.weight"] - before["embedding.weight"], expected, what, 1e-7)


def test_a_gradient_of_zero_with_steps_by_the_model():
    """Nothing moves, nothing becomes NaN, and no step is taken back."""
    model = nn.Linear(3, 2).double()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    X, y = torch.zeros(4, 3).double(), torch.zeros(4, 2).double()
    optimizer = hbp.optim.KFAC(model, nn.MSELoss(), adapt_every=1, reject=True)
    for _ in range(3):
        assert optimizer.step(X, y) == 0
    assert all(not value.any() for value in values(model).values())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("make", [hbp.optim.KFAC, hbp.optim.EKFAC, hbp.optim.KFLR, hbp.optim.KFRA, hbp.optim.Diagonal,
                                  hbp.optim.BlockNewton, hbp.optim.Newton, hbp.optim.Preconditioner])
def test_a_batch_without_samples_is_refused_and_changes_nothing(make, reduction):
    model, X, y = twice()
    optimizer = make(model, nn.CrossEntropyLoss(reduction=reduction))
    before = values(model)
    with pytest.raises(hbp.InputError, match="has no samples"):
        optimizer.step(X[:0], y[:0])
    assert optimizer.skipped == 0
    assert all(parameter.grad is None for parameter in model.parameters())
    close(moved(model, before), torch.zeros(len(moved(model, before))).double(), "parameters")


def test_a_batch_whose_labels_are_all_ignored_is_refused():
    model, X, y = twice()
    optimizer = hbp.optim.KFLR(model, None)
    with pytest.raises(hbp.InputError, match="ignored"):
        optimizer.step(X, torch.full_like(y, -100))
