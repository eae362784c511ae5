"""Losses and similarities that rule files write in other operations, in each reduction, against torch."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from tests.agreement import agree
from tests.selection import few

X = torch.randn(3, 4, dtype=torch.float64)
SIGNS = torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0], [1.0, 1.0, -1.0]], dtype=torch.float64)


class Loss(nn.Module):
    """Two at once, of six outputs; `reduction` says how each ends."""

    def __init__(self, reduction):
        super().__init__()
        self.reduction = reduction

    def forward(self, output, target):
        first, second = output.chunk(2, 1)
        return (F.soft_margin_loss(first, target, reduction=self.reduction)
                + F.margin_ranking_loss(first, second, target, margin=0.4, reduction=self.reduction))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_margins(reduction):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6)).double()
    own = Loss(reduction)
    loss = own if reduction != "none" else lambda output, target: own(output, target).sum(1).mean()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hbp.IndefiniteCurvatureWarning)
        result = hbp.compile(model, loss, ["grad", "batch_grad", "diag_ggn", "diag_h"], verify="full")(X, SIGNS)
    agree(result, model, loss, [X], SIGNS)


class Angles(nn.Module):
    def __init__(self, eps):
        super().__init__()
        self.linear, self.eps = nn.Linear(4, 6), eps

    def forward(self, x):
        first, second = self.linear(x).unflatten(1, (2, 3)).unbind(1)
        return F.cosine_similarity(first[:, None], second[:, :, None].tanh(), 2, self.eps)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("eps", [1e-8, 1.2])
def test_norms_below_eps_are_differentiated_as_torch_does(eps):
    torch.manual_seed(0)
    model, loss = Angles(eps).double(), nn.MSELoss()
    result = hbp.compile(model, loss, ["grad", "batch_grad", "diag_ggn", "diag_h"], verify="full")(X, SIGNS)
    agree(result, model, loss, [X], SIGNS)


@pytest.mark.parametrize("loss", [nn.SoftMarginLoss(), nn.SoftMarginLoss(reduction="sum"),
                                  lambda output, target: F.softplus(-target * output).mean()])
def test_a_logistic_loss_is_known_to_be_convex(loss):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.IndefiniteCurvatureWarning)
        result = hbp.compile(model, loss, ["batch_grad", "diag_ggn", "diag_h"], verify="full")(X, SIGNS)
    agree(result, model, loss, [X], SIGNS)


@pytest.mark.parametrize("quantity", ["diag_ggn", "diag_h_split", "kflr"])
def test_a_sum_of_logistic_functions_is_not(quantity):
    with pytest.warns(hbp.IndefiniteCurvatureWarning, match=quantity):
        hbp.compile(nn.Linear(4, 3).double(), lambda output, target: torch.sigmoid(-target * output).mean(),
                    [quantity])(X, SIGNS)


@pytest.mark.parametrize("quantity", ["diag_h", "grad"])
def test_which_says_nothing_of_the_hessian(quantity):
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.IndefiniteCurvatureWarning)
        hbp.compile(nn.Linear(4, 3).double(), lambda output, target: torch.sigmoid(-target * output).mean(),
                    [quantity])(X, SIGNS)


class Clustered(nn.Module):
    """An adaptive softmax in the model, which is given the labels."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.adaptive = nn.AdaptiveLogSoftmaxWithLoss(6, 8, [2, 5], div_value=2.0, head_bias=True)

    def forward(self, x, labels):
        return self.adaptive(torch.tanh(self.linear(x)), labels).output


class AllClasses(nn.Module):
    """The same by torch's logarithms of all probabilities."""

    def __init__(self, model):
        super().__init__()
        self.linear, self.adaptive = model.linear, model.adaptive

    def forward(self, x, labels):
        return self.adaptive.log_prob(torch.tanh(self.linear(x))).gather(1, labels[:, None]).squeeze(1)


def test_an_adaptive_softmax():
    torch.manual_seed(0)
    model, labels = Clustered().double(), torch.tensor([0, 6, 3])

    def loss(output, target):
        return -output.mean()

    result = hbp.compile(model, loss, ["grad", "batch_grad", "diag_ggn", "diag_h"])(X, labels, labels)
    torch.testing.assert_close(result.output, model(X, labels))
    agree(result, AllClasses(model), loss, [X, labels], labels)
