"""Where numbers are equal, or exactly at a margin or at zero, on later batches too: torch's derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp


class Scaled(nn.Module):
    """A layer times a function of a parameter."""

    def __init__(self, function):
        super().__init__()
        self.function, self.layer, self.scale = function, nn.Linear(3, 4), nn.Parameter(torch.randn(4))

    def forward(self, x):
        return self.layer(x) * self.function(self.scale)


OF_ALL = {
    "max": lambda w: w.max(), "min": lambda w: w.min(), "abs max": lambda w: w.abs().max(),
    "median": lambda w: w.median(), "amax": lambda w: w.amax(),
}


@pytest.mark.parametrize("function", OF_ALL.values(), ids=OF_ALL)
@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0, 1.0], [2.0, -1.0, 2.0, -1.0], [0.5, -3.0, 2.0, 1.0]])
def test_equal_numbers_of_a_parameter_share_the_derivative(function, values):
    torch.manual_seed(0)
    model, X, y = Scaled(function).double(), torch.randn(3, 3).double(), torch.randn(3, 4).double()
    compiled = hbp.compile(model, nn.MSELoss(), ["grad"], example_inputs=(X, y))
    with torch.no_grad():
        model.scale.copy_(torch.tensor(values))
    (wanted,) = torch.autograd.grad(nn.MSELoss()(model(X), y), model.scale)
    torch.testing.assert_close(compiled(X, y).grad["scale"], wanted)


class Scores(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return x + self.bias


MARGINS = {
    "margin_ranking_loss": lambda o, y: F.margin_ranking_loss(o[:, 0], o[:, 1], 1 - 2.0 * (y > 0)),
    "hinge_embedding_loss": lambda o, y: F.hinge_embedding_loss(o, 1 - 2.0 * F.one_hot(y, 3)),
    "multi_margin_loss": F.multi_margin_loss,
    "weighted": lambda o, y: F.multi_margin_loss(o, y, weight=torch.tensor([1.0, 2.0, 0.5]).to(o), reduction="sum"),
    "squared": lambda o, y: F.multi_margin_loss(o, y, p=2, margin=0.5),
    "each": lambda o, y: F.multi_margin_loss(o, y, reduction="none").sum(),
    "multilabel_margin_loss": lambda o, y: F.multilabel_margin_loss(o, F.pad(y.unsqueeze(1), (0, 2), value=-1)),
}


@pytest.mark.parametrize("loss", MARGINS.values(), ids=MARGINS)
def test_losses_exactly_at_their_margins(loss):
    torch.manual_seed(0)
    model = Scores().double()
    compiled = hbp.compile(model, loss, ["grad"])
    compiled(torch.randn(3, 3).double(), torch.tensor([0, 1, 2]))
    nn.init.zeros_(model.bias)
    X, y = torch.tensor([[1, 1, 0], [2, 1, 0], [0, 1, 1], [1, 0, 2]]).double(), torch.tensor([0, 0, 1, 2])
    value = loss(model(X), y)
    found = compiled(X, y)
    torch.testing.assert_close(found.loss, value.detach())
    torch.testing.assert_close(found.grad["bias"], torch.autograd.grad(value, model.bias)[0])


class Entropy(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.first, self.second = function, nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.function(self.first(x), 1 + self.second(x) ** 2)


ENTROPIES = {
    "xlogy": torch.xlogy, "xlog1py": torch.special.xlog1py, "by a number": lambda a, b: torch.xlogy(a, 2.5) * b,
    "of a number": lambda a, b: torch.xlogy(0.0, b) + torch.xlogy(1.5, b) + a,
    "of one more": lambda a, b: torch.special.xlog1py(a, 2.0) + torch.special.xlog1py(1.5, b),
}


@pytest.mark.parametrize("function", ENTROPIES.values(), ids=ENTROPIES)
def test_the_slope_of_x_log_y_at_zero(function):
    torch.manual_seed(0)
    model = Entropy(function).double()
    compiled = hbp.compile(model, nn.MSELoss(), ["grad"])
    compiled(torch.randn(4, 3).double(), torch.randn(4, 2).double())
    nn.init.zeros_(model.first.bias)
    X, y = torch.randn(4, 3).double(), torch.randn(4, 2).double()
    X[1:3] = 0
    wanted = torch.autograd.grad(nn.MSELoss()(model(X), y), list(model.parameters()), allow_unused=True)
    found = compiled(X, y).grad
    for (name, _), gradient in zip(model.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(found[name], gradient)


class Standardised(nn.Module):
    """Weights without their mean over an axis, divided by their deviation along it."""

    def __init__(self, dim):
        super().__init__()
        self.weight, self.last, self.dim = nn.Parameter(torch.randn(3, 3)), nn.Linear(3, 2), dim

    def forward(self, x):
        own = self.weight
        return self.last(x @ ((own - own.mean(self.dim, True)) / (own.std(self.dim, keepdim=True) + 1e-5)))


@pytest.mark.parametrize("dim", [0, 1, (0, 1)])
@pytest.mark.parametrize("at_first", [False, True])
def test_deviations_of_equal_weights(dim, at_first):
    torch.manual_seed(0)
    model, X, y = Standardised(dim).double(), torch.randn(4, 3).double(), torch.randn(4, 2).double()
    if at_first:
        nn.init.ones_(model.weight)
    compiled = hbp.compile(model, nn.MSELoss(), ["grad"], example_inputs=(X, y))
    nn.init.zeros_(model.weight)
    with torch.no_grad():
        model.weight[0, 1] = model.weight[1, 1] = 0.5
    (wanted,) = torch.autograd.grad(nn.MSELoss()(model(X), y), model.weight)
    assert wanted.isfinite().all()
    torch.testing.assert_close(compiled(X, y).grad["weight"], wanted)
