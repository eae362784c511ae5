"""Losses whose weights are negative: curvature with its sign, and a warning."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.losses.negative_weights import with_negative_weights
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.compiler.trace.trace import trace
from hbpcompiler.errors import IndefiniteCurvatureWarning, UnsupportedOpError
from hbpcompiler.rule.registry import builtin
from tests.agreement import agree

LABELS = torch.tensor([0, 1, 2, 1, 1, 0])


def weights(sign):
    return torch.tensor([1.0, 3.0 * sign, 2.0], dtype=torch.float64)


def hot(labels):
    return F.one_hot(labels, 3).double()


class Positions(nn.Module):
    """Logits at two places of a sample."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 6)

    def forward(self, x):
        return self.layer(x).unflatten(1, (3, 2))


LOSSES = {
    "classes": lambda sign: nn.CrossEntropyLoss(weight=weights(sign)),
    "sum": lambda sign: nn.CrossEntropyLoss(weight=weights(sign), reduction="sum", label_smoothing=0.1),
    "made of others": lambda sign: lambda o, y: F.cross_entropy(o, y, weight=weights(1) * torch.tensor([1, sign, 1])),
    "of samples": lambda sign: lambda o, y: F.binary_cross_entropy_with_logits(
        o, hot(y), weight=(sign * (y == 1) + (y != 1)).double()[:, None]),
    "of positives": lambda sign: lambda o, y: F.binary_cross_entropy_with_logits(o, hot(y), pos_weight=weights(sign)),
    "counts": lambda sign: lambda o, y: F.poisson_nll_loss(
        o.square() + 0.1, sign * (y[:, None] + 0.5).expand(-1, 3), log_input=False),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sign", [1, -1])
def test_curvature_has_its_sign(name, sign):
    torch.manual_seed(0)
    model, loss, X = nn.Linear(3, 3).double(), LOSSES[name](sign), torch.randn(6, 3, dtype=torch.float64)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = hbp.compile(model, loss, ["grad", "diag_ggn", "diag_h", "trace_ggn"])(X, LABELS)
    agree(found, model, loss, [X], LABELS)
    warned = any(issubclass(each.category, IndefiniteCurvatureWarning) for each in said)
    assert warned == (sign < 0 or name == "counts")
    if sign < 0:
        with pytest.raises(UnsupportedOpError, match="without negative weights"):
            hbp.compile(model, loss, ["sqrt_ggn"])(X, LABELS)


@pytest.mark.parametrize("sign", [1, -1])
def test_positions(sign):
    torch.manual_seed(0)
    model, loss = Positions().double(), LOSSES["classes"](sign)
    X, y = torch.randn(6, 3, dtype=torch.float64), torch.stack([LABELS, LABELS.flip(0)], 1)
    agree(hbp.compile(model, loss, ["grad", "diag_ggn", "diag_h"])(X, y), model, loss, [X], y)


@pytest.mark.parametrize("name", LOSSES)
def test_which_losses_they_are(name):
    model, X = nn.Linear(3, 3).double(), torch.randn(6, 3, dtype=torch.float64)
    for sign in (1, -1):
        traced = trace(model, LOSSES[name](sign), batch_of([X, LABELS]))
        assert len(with_negative_weights(traced, builtin())) == (sign < 0)
