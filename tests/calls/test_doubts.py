"""Where one sample moves the gradients of others, clipping bounds nothing, and a program says so."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp

DTYPE = torch.float64


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x - x.mean(0))


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        h = self.layer(x)
        return h - h.detach().mean(0)


def frozen():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    model[:2].requires_grad_(False)
    return model


def on_inputs():
    return nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2))


def weighted(output, target):
    return (F.cross_entropy(output, target, reduction="none") * target / target.sum()).sum()


def summed(output, target):
    return F.cross_entropy(output, target, reduction="sum")


def batch():
    torch.manual_seed(0)
    x, y = 0.1 * torch.randn(16, 4, dtype=DTYPE), torch.arange(16) % 2
    x[-1] = 50.0
    return x, y


def moved(compiled):
    """By how many max_norm the last sample moves the sum."""
    x, y = batch()
    whole, less = (compiled(*rows, max_norm=0.5).clipped_grad for rows in ((x, y), (x[:-1], y[:-1])))
    return float(sum((whole[name] - less[name]).square().sum() for name in whole).sqrt()) / 0.5


MIXING = {"inputs": (on_inputs, summed), "frozen": (frozen, summed), "centred": (Centred, summed),
          "shifted": (Shifted, summed), "weighted": (lambda: nn.Linear(4, 2), weighted)}


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize("clipping", ["flat", "per_parameter"])
def test_samples_that_meet_are_named(name, clipping):
    model, loss = MIXING[name]
    compiled = hbp.compile(model().to(DTYPE).train(), loss, ["clipped_grad"], clipping=clipping)
    with pytest.warns(hbp.MixedSamplesWarning, match=r"not bounded by max_norm(.|\n)*  - \w+") as warned:
        compiled(*batch(), max_norm=0.5)
    if name in ("centred", "shifted", "weighted"):
        assert "test_doubts.py:" in str(warned[0].message)
    if name in ("inputs", "frozen", "centred"):
        assert moved(compiled) > (1 if clipping == "flat" else 0)


def mean(output, target):
    return F.cross_entropy(output, target, ignore_index=-1)


def divided(output, target):
    return F.cross_entropy(output, target, reduction="sum") / len(output)


def smoothed(output, target):
    return F.cross_entropy(output, F.one_hot(target, 2).to(output.dtype) * 0.9 + 0.05, reduction="sum")


@pytest.mark.parametrize("loss", [summed, mean, divided, smoothed])
@pytest.mark.parametrize("model", [
    lambda: nn.Linear(4, 2), lambda: frozen().eval(), lambda: on_inputs().eval(),
    lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Dropout(0.0), nn.Linear(4, 2)),
    lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.GroupNorm(1, 2), nn.Flatten(), nn.Softmax(1), nn.Linear(4, 2))],
    ids=["linear", "frozen", "inputs", "layer norm", "group norm"])
def test_samples_that_stay_apart_are_not_warned_of(model, loss):
    compiled = hbp.compile(model().to(DTYPE), loss, ["clipped_grad"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(*batch(), max_norm=0.5)
    if loss in (summed, smoothed):
        assert moved(compiled) <= 1 + 1e-10


def test_other_quantities_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hbp.compile(Centred().to(DTYPE), summed, ["grad", "batch_grad"])(*batch())
