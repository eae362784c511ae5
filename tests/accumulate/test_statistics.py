"""What a model or a loss makes of a whole batch: a total is not that of all samples as one then, which is said."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from tests.selection import few


def each(o, t):
    return F.binary_cross_entropy_with_logits(o[:, 0], t[0], reduction="none")


def weights_over_their_mean(o, t):
    return (each(o, t) * (t[1] / t[1].mean())).mean()


def standardised(o, t):
    return -((t[1] - t[1].mean()) / (t[1].std() + 1e-8) * F.logsigmoid(o[:, 0])).mean()


def by_rank(o, t):
    return (each(o, t) * t[1].argsort().argsort()).mean()


def over_the_largest(o, t):
    return (each(o, t) * t[1] / t[1].max()).sum()


class Standardising(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x):
        return self.layer((x - x.mean(0)) / x.std(0))


class Shifting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x):
        h = self.layer(x)
        return h - h.detach().mean(0)


def batches():
    torch.manual_seed(0)
    X, y, w = torch.randn(24, 4), torch.randint(2, (24,)).float(), torch.rand(24) + 0.1
    return [(X[i : i + 6], (y[i : i + 6], w[i : i + 6])) for i in range(0, 24, 6)]


def plain(o, t):
    return each(o, t).mean()


CASES = {"weights over their mean": (nn.Linear(4, 1), weights_over_their_mean),
         "standardised": (nn.Linear(4, 1), standardised), "ranks": (nn.Linear(4, 1), by_rank),
         "the largest": (nn.Linear(4, 1), over_the_largest), "inputs": (Standardising(), plain),
         "outputs": (Shifting(), plain)}


@few(2, "further cases of one kind")
@pytest.mark.parametrize("name", CASES)
def test_what_is_made_of_a_batch_is_said(name):
    model, loss = CASES[name]
    compiled = hbp.compile(model, loss, ["grad"])
    with pytest.warns(hbp.TotalWarning, match=r"make of a whole batch(.|\n)*test_statistics\.py:\d+"):
        hbp.accumulate(compiled, batches(), progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hbp.accumulate(compiled, batches()[:1], progress=False)


def by_their_sum(o, t):
    return (each(o, t) * t[1]).sum() / t[1].sum()


def by_a_mask(o, t):
    return each(o, t)[t[1] > 0.5].mean()


def sorted_features(o, t):
    return (each(o, t) * t[1].unsqueeze(1).expand(-1, 3).sort(1).values.sum(1)).mean()


@pytest.mark.parametrize("loss", [plain, by_their_sum, by_a_mask, sorted_features])
def test_what_adds_up_is_not_warned_of(loss):
    compiled = hbp.compile(nn.Linear(4, 1), loss, ["grad"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hbp.accumulate(compiled, batches(), progress=False)
