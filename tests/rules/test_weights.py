"""Weights that become negative after a program was made, and probabilities of exactly 0 and 1: beside autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference
from hbpcompiler.rule import not_negative
from tests.selection import few

X, LABELS = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
HALVES, WEIGHTS = torch.rand(5, 2, dtype=torch.float64), torch.rand(5, 1, dtype=torch.float64) + 0.1
LOSSES = {
    "weight": (lambda o, y: F.binary_cross_entropy_with_logits(o, y[0], weight=y[1]), HALVES),
    "pos_weight": (lambda o, y: F.binary_cross_entropy_with_logits(o, y[0], pos_weight=y[1]), HALVES),
    "of each": (lambda o, y: (F.cross_entropy(o, y[0], reduction="none") * y[1][:, 0]).mean(), LABELS),
}
ALL = ("grad", "diag_ggn", "diag_ggn_mc", "diag_h", "kfac", "kflr")


def values(found):
    return [tensor for item in found.values() for tensor in (item if isinstance(item, tuple | list) else [item])
            if isinstance(tensor, torch.Tensor)]


def model_of(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 2).double()


def agrees_or_says(compiled, model, loss, y, quantity):
    """Whether there are numbers, and not an error: those are right, and never NaN."""
    try:
        found = compiled(X, y)[quantity]
    except hbp.errors.InputError as error:
        assert "negative" in str(error)  # noqa: PT017
        return False
    assert all(bool(torch.isfinite(tensor).all()) for tensor in values(found))
    if quantity in ("grad", "diag_ggn", "diag_h"):
        for name, expected in reference(model, loss, (X,), y, quantity).items():
            torch.testing.assert_close(found[name], expected, rtol=1e-8, atol=1e-10)
    return True


@few(4, "further losses and quantities")
@pytest.mark.parametrize("quantity", ALL)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.filterwarnings("ignore::hbpcompiler.errors.IndefiniteCurvatureWarning")
def test_sample_weights_that_become_negative(name, quantity):
    (loss, target), model = LOSSES[name], model_of()
    compiled = hbp.compile(model, loss, quantities=[quantity])
    negative = WEIGHTS * torch.tensor([1.0, -1, 1, 1, -1])[:, None]
    assert agrees_or_says(compiled, model, loss, (target, WEIGHTS), quantity)
    agrees_or_says(compiled, model, loss, (target, negative), quantity)
    assert agrees_or_says(compiled, model, loss, (target, WEIGHTS), quantity)
    if name != "of each" and quantity in ("diag_ggn_mc", "kfac"):
        with pytest.raises(hbp.errors.InputError, match="sampled ones"):
            hbp.compile(model, loss, quantities=[quantity], example_inputs=(X, (target, negative)))
        return
    anew = hbp.compile(model, loss, quantities=[quantity], example_inputs=(X, (target, negative)))
    for weights in (negative, WEIGHTS):
        assert agrees_or_says(anew, model, loss, (target, weights), quantity)


@pytest.mark.parametrize("backend", ["python", "torchscript"])
@pytest.mark.parametrize("quantity", ["grad", "diag_ggn", "diag_ggn_mc"])
def test_class_weights_that_become_negative(quantity, backend):
    model, loss = model_of(), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0], dtype=torch.float64))
    compiled = hbp.compile(model, loss, quantities=[quantity], backend=backend)
    assert agrees_or_says(compiled, model, loss, LABELS, quantity)
    loss.weight[1] = -0.5
    assert agrees_or_says(compiled, model, loss, LABELS, quantity) == (quantity == "grad")


def test_roots_are_of_what_is_not_negative():
    weights = torch.tensor([0.0, 2.0])
    assert not_negative(weights).tolist() == [0, 2]
    assert not_negative(weights) is not weights
    with pytest.raises(RuntimeError, match="weights of the loss are negative"):
        not_negative(-weights)


class Between(nn.Module):
    """Probabilities, some of which are 0 or 1."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return (0.5 + 2 * self.layer(x)).clamp(0, 1)


SURE = (HALVES > 0.5).double()
SCALES = torch.tensor([2.0, 1.0], dtype=torch.float64)
PIECES = {
    "weighted": lambda o, y: (F.binary_cross_entropy(o, y, reduction="none") * torch.tensor([1.0, 2.0]).to(o)).mean(),
    "focal": lambda o, y: ((1 - o).square() * F.binary_cross_entropy(o, y, reduction="none")).mean(),
    "of sums": lambda o, y: F.binary_cross_entropy(o, y, weight=SCALES, reduction="none").sum(1).square().mean(),
}


@pytest.mark.parametrize("targets", [SURE, HALVES], ids=["sure", "between"])
@pytest.mark.parametrize("name", PIECES)
@pytest.mark.filterwarnings("ignore::hbpcompiler.errors.IndefiniteCurvatureWarning")
def test_probabilities_of_0_and_1_in_a_piece_of_a_loss(name, targets):
    torch.manual_seed(0)
    model, loss = Between().double(), PIECES[name]
    output = model(X)
    assert bool((output == 0).any() or (output == 1).any())
    found = hbp.compile(model, loss, quantities=["grad", "batch_grad", "diag_h"])(X, targets)
    for quantity in ("grad", "batch_grad", "diag_h"):
        for key, expected in reference(model, loss, (X,), targets, quantity).items():
            torch.testing.assert_close(found[quantity][key], expected, rtol=1e-7, atol=1e-10)


def test_the_slope_at_0_and_1_is_torchs():
    class Itself(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, x):
            return x + self.shift

    x = torch.tensor([[0.0, 1], [1, 0], [1e-13, 0.3]], dtype=torch.float64)
    y = torch.tensor([[0.0, 1], [0.4, 1], [1, 0]], dtype=torch.float64)
    model, loss = Itself(), PIECES["weighted"]
    found = hbp.compile(model, loss, quantities=["batch_grad"])(x, y)
    expected = reference(model, loss, (x,), y, "batch_grad")["shift"]
    torch.testing.assert_close(found.batch_grad["shift"], expected, rtol=1e-10, atol=0)
