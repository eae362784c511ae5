"""What the definitions by brute force are not for."""

import pytest
import torch
from torch import nn

from hbpcompiler.reference import ggn_block, kfac_emp, kflr, kfra, reference

MODEL = nn.Linear(3, 2).double()
X, Y = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)


def penalised(output, target):
    return nn.functional.mse_loss(output, target) + MODEL.weight.square().sum()


def test_a_loss_of_parameters_has_a_gradient_and_a_hessian():
    plain = reference(MODEL, nn.MSELoss(), (X,), Y, "grad")
    found = reference(MODEL, penalised, (X,), Y, "grad")
    torch.testing.assert_close(found["weight"], plain["weight"] + 2 * MODEL.weight.detach())
    curvature = reference(MODEL, penalised, (X,), Y, "diag_h")["weight"]
    torch.testing.assert_close(curvature, reference(MODEL, nn.MSELoss(), (X,), Y, "diag_h")["weight"] + 2)


@pytest.mark.parametrize("quantity", ["batch_grad", "batch_l2", "variance", "diag_ggn", "trace_ggn"])
def test_and_no_shares_of_samples(quantity):
    with pytest.raises(ValueError, match="the loss depends on weight beside the model's output"):
        reference(MODEL, penalised, (X,), Y, quantity)


def test_and_no_ggn_of_these_parameters():
    with pytest.raises(ValueError, match="depends on weight"):
        ggn_block(MODEL, penalised, (X,), Y, "weight")
    plain = ggn_block(MODEL, nn.MSELoss(), (X,), Y, "bias")
    torch.testing.assert_close(ggn_block(MODEL, penalised, (X,), Y, "bias"), plain)


def test_layers_used_twice_have_no_factors():
    """Neither one that is called twice, nor two with one weight."""
    torch.manual_seed(0)
    twice, other, tied, last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
    tied.weight = other.weight
    model = nn.Sequential(twice, nn.Tanh(), twice, other, nn.Tanh(), tied, last).double()
    for factors in (kflr, kfac_emp, kfra):
        found = factors(model, nn.CrossEntropyLoss(), (torch.randn(4, 3).double(),), torch.tensor([0, 1, 1, 0]))
        assert found.keys() == {"6.weight", "6.bias"}


def test_kfra_runs_a_module_as_often_as_the_model_does():
    """The average passes a Tanh, and a nested Sequential, twice; against the recursion by hand."""
    torch.manual_seed(0)
    first, last, tanh = nn.Linear(3, 3).double(), nn.Linear(3, 2).double(), nn.Tanh()
    X, y = torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0])
    block = nn.Sequential(tanh)
    found = kfra(nn.Sequential(first, block, block, last), nn.CrossEntropyLoss(), (X,), y)
    h = torch.tanh(first(X))
    p = torch.softmax(last(torch.tanh(h)), 1)
    average = (torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)).mean(0)
    torch.testing.assert_close(found["3.bias"][1], average)
    average = last.weight.T @ average @ last.weight
    for slope in (1 - torch.tanh(h).square(), 1 - h.square()):
        average = average * (slope.T @ slope / len(X))
    torch.testing.assert_close(found["0.bias"][1], average)


class Skips(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


@pytest.mark.parametrize("hooked", [False, True])
def test_kfra_of_modules_that_are_not_in_a_row_is_no_number(hooked):
    X, y = torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0])
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()
    if hooked:
        model.register_forward_hook(lambda module, given, output: 2 * output)
        with pytest.raises(ValueError, match="modules in a row"):
            kfra(model, nn.CrossEntropyLoss(), (X,), y)
    else:
        assert kfra(Skips(*model).double(), nn.CrossEntropyLoss(), (X,), y) == {}  # no layer but itself
