"""Losses that are convex though no rule of composition says so: operations of one element are looked at as one."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import kflr
from tests.agreement import agree, close
from tests.models.test_negative_ends import D, batch, network


def apart(o, y):
    return o - y[:, None]


def product(d):
    return d * d


def divergence(o, target, **options):
    return F.kl_div(o.log_softmax(1), target, reduction="batchmean", **options)


def teacher(o, y):
    return F.one_hot(y, 3).to(D).softmax(1)


def several(o, y):
    return 1 - F.one_hot(y, 3)


CONVEX = {
    "log1p(exp)": lambda o, y: torch.log1p(torch.exp(-o)).mean(),
    "log(1 + exp)": lambda o, y: (1 + (-2 * o).exp()).log().sum() / len(o),
    "margins": lambda o, y: torch.log1p(torch.exp(-(2 * F.one_hot(y, 3) - 1) * o)).mean(),
    "-log(sigmoid)": lambda o, y: -o.sigmoid().log().mean(),
    "-log(1 - sigmoid)": lambda o, y: -(1 - o.sigmoid()).log().mean(),
    "pseudo-Huber": lambda o, y: torch.sqrt(1 + product(apart(o, y))).mean(),
    "pseudo-Huber, scaled": lambda o, y: (0.09 * (torch.sqrt(1 + (apart(o, y) / 0.3) ** 2) - 1)).mean(),
    "Charbonnier": lambda o, y: (apart(o, y) ** 2 + 1e-6).sqrt().mean(),
    "Charbonnier, a power": lambda o, y: ((apart(o, y) ** 2 + 1e-4) ** 0.5).sum(1).mean(),
    "log cosh": lambda o, y: apart(o, y).cosh().log().mean(),
    "times a mask": lambda o, y: ((1 + apart(o, y) ** 2).sqrt() * (y > 0)[:, None]).sum() / (y > 0).sum(),
    "several labels": lambda o, y: F.multilabel_soft_margin_loss(o, several(o, y)),
    "several labels, summed": lambda o, y: nn.MultiLabelSoftMarginLoss(reduction="sum")(o, 1.5 * several(o, y).float()),
    "several labels, each": lambda o, y: F.multilabel_soft_margin_loss(o, several(o, y), reduction="none").mean(),
    "teacher": lambda o, y: divergence(o, teacher(o, y)),
    "teacher, temperature": lambda o, y: 4 * divergence(o / 2, (teacher(o, y) / 2).softmax(1)),
    "teacher's logarithms": lambda o, y: divergence(o, teacher(o, y).log(), log_target=True),
}
NOT = {
    "sqrt(d^2 - 1)": lambda o, y: (9 * (1 + o**2) - 1).sqrt().sqrt().mean(),
    "log1p(-exp)": lambda o, y: torch.log1p(-0.1 * torch.exp(-o.tanh())).mean(),
    "-log1p(exp)": lambda o, y: -torch.log1p(torch.exp(-o)).mean(),
    "log(1 + d^2)": lambda o, y: torch.log1p(apart(o, y) ** 2).mean(),
    "-log cosh": lambda o, y: -apart(o, y).cosh().log().mean(),
    "log(2 - exp)": lambda o, y: (9 - torch.exp(-o.tanh())).log().mean(),
}


@pytest.mark.parametrize("name", CONVEX)
def test_they_are_known_to_be_convex(name):
    model, loss, (X, y) = network(), CONVEX[name], batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = hbp.compile(model, loss, ["grad", "diag_ggn", "diag_h", "kflr", "sqrt_ggn"])(X, y)
    agree(result, model, loss, [X], y, ["grad", "diag_ggn", "diag_h"])
    factors = kflr(model, loss, (X,), y)
    for parameter, columns in result.sqrt_ggn.items():
        whole = result.diag_ggn[parameter]
        close(columns.reshape(-1, *whole.shape).square().sum(0), whole, f"columns of {parameter}")
        close(result.kflr[parameter].B, factors[parameter][1], f"factor B of {parameter}")


@pytest.mark.parametrize("name", NOT)
def test_these_are_not(name):
    model, loss, (X, y) = network(), NOT[name], batch()
    with pytest.warns(hbp.IndefiniteCurvatureWarning):
        result = hbp.compile(model, loss, ["grad", "diag_ggn"])(X, y)
    agree(result, model, loss, [X], y, ["grad", "diag_ggn"])
    with pytest.raises(hbp.CompileError):
        hbp.compile(model, loss, ["sqrt_ggn"])(X, y)


def test_a_teacher_that_may_be_negative_is_not():
    """Its loss is NaN in torch where it is, so that only the plan is asked."""
    model, (X, y) = network(), batch()

    def loss(o, y):
        return divergence(o, teacher(o, y) - 0.1)

    with pytest.raises(hbp.CompileError, match="positive"):
        hbp.compile(model, loss, ["sqrt_ggn"])(X, y)
    with pytest.raises(hbp.InputError, match="not negative"):
        hbp.compile(model, divergence, ["sqrt_ggn"])(X, -torch.rand(6, 3, dtype=D))


@pytest.mark.parametrize("loss", [CONVEX["log1p(exp)"], CONVEX["-log(sigmoid)"], CONVEX["log cosh"]])
def test_curvature_is_finite_where_the_loss_is(loss):
    """exp(u) / (1 + exp(u))^2 is not, in single precision, where u is 60."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1)
    y, o = torch.zeros(1), torch.tensor([[60.0], [-60.0], [0.0]])
    found = hbp.compile(model, loss, ["grad", "batch_diag_ggn"])(o, y.expand(3))
    right = hbp.compile(model.double(), loss, ["grad", "batch_diag_ggn"])(o.double(), y.double().expand(3))
    torch.testing.assert_close(found.batch_diag_ggn["weight"].double(), right.batch_diag_ggn["weight"])
    torch.testing.assert_close(found.grad["weight"].double(), right.grad["weight"])


def test_several_labels_with_weights():
    """Of unknown signs, and with targets beyond 0 and 1, as torch takes them."""
    def loss(o, y):
        return F.multilabel_soft_margin_loss(o, 3.0 * several(o, y) - 1, torch.tensor([1.0, -0.5, 2.0], dtype=D))

    model, (X, y) = network(), batch()
    agree(hbp.compile(model, loss, ["grad", "diag_h"])(X, y), model, loss, [X], y, ["grad", "diag_h"])
