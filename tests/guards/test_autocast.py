"""Programs traced under autocast and outside: each its own, both as loss.backward() has it."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.selection import few

ROUNDING = 4 * torch.finfo(torch.bfloat16).eps
"""Two orders of the same sums, in bfloat16, differ by so much at most."""


def norm(network):
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3).eval(), nn.ReLU(), nn.Flatten(), network)


MODELS = {
    "normed convolutions": (lambda: norm(nn.Linear(48, 2)), (6, 1, 6, 6), nn.CrossEntropyLoss(), None),
    "layer norm, squared errors": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)),
                                   (6, 3), nn.MSELoss(), torch.randn(6, 2)),
}


@few(1, "the other order of the states")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_each_state_has_its_program(name, first):
    make, shape, loss, target = MODELS[name]
    torch.manual_seed(0)
    model, X = make(), torch.randn(shape)
    y = torch.arange(6) % 2 if target is None else target
    names = ["grad", "batch_grad", "diag_h"]
    compiled = hbp.compile(model, loss, names)
    for under in (first, not first, first):
        with torch.autocast("cpu", torch.bfloat16, enabled=under):
            result = compiled(X, y)
            output = model(X)
            wanted = loss(output, y)
        assert result.output.dtype == output.dtype == (torch.bfloat16 if under else torch.float32)
        assert abs(result.loss - wanted) <= ROUNDING * wanted
        model.zero_grad()
        wanted.backward()  # outside the context, as torch's pages have it
        for key, parameter in model.named_parameters():
            assert {result[quantity][key].dtype for quantity in names} == {torch.float32}
            error = (result.grad[key] - parameter.grad).abs().max()
            terms = result.batch_grad[key].abs().sum(0).max()  # they cancel in part, their roundings do not
            assert error <= (ROUNDING if under else 1e-5) * terms
            torch.testing.assert_close(result.batch_grad[key].sum(0), result.grad[key], rtol=0.05, atol=2e-3)
    assert "programs=2" in repr(compiled)
