"""Random numbers drawn in front of the samples, K for each, over which a model averages: beside autograd."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.trace.batch import batch_of

K = 3


class Drawing(nn.Module):
    def __init__(self, averaged):
        super().__init__()
        self.mean, self.spread, self.last, self.averaged = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2), averaged

    def forward(self, x):
        return self.last(self.averaged(self.mean(x), self.spread(x)))


WAYS = {
    "randn": lambda h, s: torch.tanh(h + s * torch.randn(K, *h.shape, dtype=h.dtype)).mean(0),
    "changed": lambda h, s: torch.tanh(h + s * (0.5 * torch.rand(K, *h.shape, dtype=h.dtype) - 1)).mean(0),
    "rsample": lambda h, s: torch.tanh(torch.distributions.Normal(h, s.exp()).rsample((K,))).mean(0),
    "two axes": lambda h, s: torch.tanh(h * torch.randn(K, 2, *h.shape, dtype=h.dtype) + s).mean((0, 1)),
    "in the middle": lambda h, s: torch.tanh(h * torch.randn(K, len(h), 2, 4, dtype=h.dtype).sum(2) + s).mean(0),
    "copies": lambda h, s: torch.tanh(h.repeat_interleave(K, 0) * torch.randn(K * len(h), 4, dtype=h.dtype)).view(
        -1, K, 4).mean(1) + s,
}


def at(model, x, y, seed=1):
    """Losses of the samples as the model has them."""
    torch.manual_seed(seed)
    return nn.functional.cross_entropy(model(x), y, reduction="none")


@pytest.mark.parametrize("name", WAYS)
def test_they_are_the_models_own(name):
    torch.manual_seed(0)
    model = Drawing(WAYS[name]).double()
    compiled = hbp.compile(model, quantities=["grad", "batch_grad", "diag_h"])
    for samples in (5, 4):
        x, y = torch.randn(samples, 3, dtype=torch.float64), torch.arange(samples) % 2
        compiled(x, y)
        torch.manual_seed(1)
        found = compiled(x, y)
        weight = model.mean.weight
        losses = at(model, x, y)
        for n, loss in enumerate(losses):
            (own,) = torch.autograd.grad(loss / samples, weight, retain_graph=True)
            torch.testing.assert_close(found.batch_grad["mean.weight"][n], own, rtol=1e-9, atol=1e-12)
        (slope,) = torch.autograd.grad(losses.mean(), weight, create_graph=True)
        torch.testing.assert_close(found.grad["mean.weight"], slope, rtol=1e-9, atol=1e-12)
        bend = [torch.autograd.grad(entry, weight, retain_graph=True)[0].flatten()[i]
                for i, entry in enumerate(slope.flatten())]
        torch.testing.assert_close(found.diag_h["mean.weight"].flatten(), torch.stack(bend), rtol=1e-8, atol=1e-11)


def test_draws_are_told_from_what_is_made_of_them():
    compiled = hbp.compile(Drawing(WAYS["changed"]), quantities=["grad"])
    _, built = compiled._program(batch_of((torch.randn(5, 3), torch.arange(5) % 2)))
    assert [each.short for each in built.matched.graph.operations if aten.draws(each)] == ["rand"]


def test_draws_of_copies_in_another_order_are_refused():
    """Sample n of repeat() is in rows n, n + N, ...: draws for it by its key would be others' rows."""
    model = Drawing(lambda h, s: torch.tanh(h.repeat(K, 1) * torch.randn(K * len(h), 4)).view(K, -1, 4).mean(0) + s)
    with pytest.raises(hbp.UnsupportedOpError, match="samples are not in front"):
        hbp.compile(model, quantities=["grad"])(torch.randn(5, 3), torch.arange(5) % 2)


def test_samples_keep_their_draws_in_other_batches():
    torch.manual_seed(0)
    model = Drawing(WAYS["randn"]).double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 2
    compiled = hbp.compile(model, quantities=["grad"])
    totals = [hbp.accumulate(compiled, [(x[i:i + size], y[i:i + size]) for i in range(0, 6, size)], progress=False,
                             seed=3).grad["mean.weight"] for size in (6, 2, 3)]
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(totals[0], totals[2], rtol=1e-10, atol=1e-13)
