"""Draws that are written as others, beside autograd on the same numbers, and those that are refused."""

import pytest
import torch
import torch.distributions as D
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.patches import draws
from tests.agreement import close

X, Y = torch.randn(5, 3, dtype=torch.float64), torch.randint(2, (5,))


class Drawing(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4).double(), nn.Linear(3, 4).double()
        self.last, self.function = nn.Linear(4, 2).double(), function

    def forward(self, x):
        return self.last(self.function(self.first(x), self.second(x)))


RIGHT = {
    "bernoulli_ of probabilities": lambda h, k: h * torch.empty_like(h).bernoulli_(k.sigmoid().detach()) + k,
    "bernoulli_ of derivatives": lambda h, k: h * torch.empty_like(h).bernoulli_(k.sigmoid()) + k,
    "bernoulli_ of some": lambda h, k: h * torch.empty_like(h).bernoulli_(k.sigmoid().detach()[:, :1]),
    "bernoulli_ of a number": lambda h, k: h * torch.empty_like(h).bernoulli_(0.3) + k,
    "randint_like": lambda h, k: h * torch.randint_like(h, 3) + k,
    "randint_like, between": lambda h, k: h * torch.randint_like(h, -2, 5) + k,
    "randint_like, by name": lambda h, k: h * torch.randint_like(h, low=1, high=5) + k,
    "randint_like, of a dtype": lambda h, k: h * torch.randint_like(h, 3, dtype=torch.int64) + k,
    "gamma of constants": lambda h, k: h * D.Gamma(F.softplus(k).detach() + 0.5, 1.0).sample() + k,
    "gamma over a sum": lambda h, k: h * _shares(torch._standard_gamma(k.detach().exp())),
    "trials": lambda h, k: h * torch.bernoulli(k.sigmoid().detach().expand(5, *k.shape)).sum(0),
}


def _shares(numbers):
    return numbers / numbers.sum(-1, keepdim=True)


@pytest.mark.parametrize("name", RIGHT)
def test_the_same_numbers(name):
    model = Drawing(RIGHT[name])
    compiled = hbp.compile(model, nn.CrossEntropyLoss(), ["grad"], example_inputs=(X, Y))
    torch.manual_seed(3)
    found = compiled(X, Y)
    torch.manual_seed(3)
    loss = nn.CrossEntropyLoss()(model(X), Y)
    close(found.loss, loss.detach(), "loss")
    parameters = {name: value for name, value in model.named_parameters() if name in found.grad}
    for name, slope in zip(parameters, torch.autograd.grad(loss, [*parameters.values()]), strict=True):
        close(found.grad[name], slope, name)


@pytest.mark.parametrize(("function", "words"), [
    (lambda h, k: D.Gamma(F.softplus(k) + 0.5, 1.0).rsample() * h, draws.NO_GAMMA),
    (lambda h, k: D.Dirichlet(F.softplus(k) + 0.5).rsample() * h, draws.NO_DIRICHLET),
    (lambda h, k: D.Beta(F.softplus(k) + 0.5, F.softplus(h) + 0.5).rsample(), draws.NO_DIRICHLET),
    (lambda h, k: D.Binomial(5, logits=k.detach()).sample() * h, draws.NO_BINOMIAL),
    (lambda h, k: D.VonMises(h.detach(), k.detach().exp()).sample() * h, draws.NO_VON_MISES),
    (lambda h, k: nn.init.trunc_normal_(torch.empty_like(h)) * h, draws.NO_TRUNCATED),
    (lambda h, k: F.rrelu(h, training=True) + k, "uniform_(lower, upper)"),
], ids=["Gamma", "Dirichlet", "Beta", "Binomial", "VonMises", "trunc_normal_", "rrelu"])
@pytest.mark.parametrize("verify", [True, False])
def test_what_cannot_be_drawn_is_refused_by_line(function, words, verify):
    with pytest.raises(hbp.CompileError) as caught:
        hbp.compile(Drawing(function), nn.CrossEntropyLoss(), ["grad"], verify=verify)(X, Y)
    assert words in str(caught.value)
    assert "test_draws.py:" in str(caught.value)
