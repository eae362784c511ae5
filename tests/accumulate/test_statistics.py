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


class ByPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x):
        return self.layer(x) * (1 + torch.arange(len(x)))[:, None]


class ByNumber(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x):
        return self.layer(x) / len(x)


def cut_up(lengths):
    X, y, w = (torch.cat(items) for items in zip(*[(x, *t) for x, t in batches()], strict=True))
    parts = [item.split(lengths) for item in (X[: sum(lengths)], y[: sum(lengths)], w[: sum(lengths)])]
    return [(x, (y, w)) for x, y, w in zip(*parts, strict=True)]


@pytest.mark.parametrize("lengths", [[1] * 8, [2] * 4, [6, 1, 5], [1, 11]])
@pytest.mark.parametrize("model", [Standardising, Shifting, ByPlace, ByNumber])
def test_however_small_the_batches_are(model, lengths):
    with pytest.warns(hbp.TotalWarning, match=r"make of a whole batch(.|\n)*test_statistics\.py:\d+"):
        hbp.accumulate(hbp.compile(model(), plain, ["grad"]), cut_up(lengths), progress=False)


@pytest.mark.parametrize("quantities", [["grad", "kfac"], ["diag_ggn_mc"]])
def test_beside_what_is_drawn(quantities):
    def loss(o, t):
        return F.mse_loss(o[:, 0], t[0])

    model = nn.Sequential(Shifting(), nn.Dropout(0.5))
    with pytest.warns(hbp.TotalWarning, match=r"make of a whole batch(.|\n)*test_statistics\.py:\d+"):
        hbp.accumulate(hbp.compile(model, loss, quantities), batches(), progress=False)


def test_a_later_form_of_batches():
    """The first form of batches, sequences of one length, shows nothing of it."""
    def loss(o, t):
        return F.mse_loss(o.mean(1)[:, 0], t)

    model, X, y = Shifting(), torch.randn(8, 1, 4), torch.randn(8)
    model.forward = lambda x: model.layer(x) if x.shape[1] == 1 else model.layer(x) - model.layer(x).detach().mean(0)
    longer = [(torch.randn(4, 3, 4), torch.randn(4)) for _ in range(2)]
    with pytest.warns(hbp.TotalWarning, match=r"make of a whole batch(.|\n)*test_statistics\.py:\d+"):
        hbp.accumulate(hbp.compile(model, loss, ["grad"]), [(X[:4], y[:4]), (X[4:], y[4:]), *longer], progress=False)


def test_numbers_of_the_size_that_make_no_difference():
    def loss(o, t):
        return each(o, t)[torch.arange(len(o))].sum() / len(o)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hbp.accumulate(hbp.compile(nn.Linear(4, 1), loss, ["grad"]), batches(), progress=False)


def as_often_as_alike(o, t):
    return (each(o, t) * (t[0][:, None] == t[0][None]).float().mean(1)).mean()


def with_larger_ones(o, t):
    return (each(o, t) * (t[1][:, None] > t[1]).sum(1)).mean()


class AmongPairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x):
        return self.layer(x * (x[:, None] - x).square().sum(-1).mean(1, keepdim=True))


@pytest.mark.parametrize(("model", "loss"), [(nn.Linear(4, 1), as_often_as_alike), (nn.Linear(4, 1), with_larger_ones),
                                             (AmongPairs(), plain)])
def test_pairs_of_samples(model, loss):
    with pytest.warns(hbp.TotalWarning, match=r"make of a whole batch(.|\n)*test_statistics\.py:\d+"):
        hbp.accumulate(hbp.compile(model, loss, ["grad"]), batches(), progress=False)


class InTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x):
        return self.layer(F.batch_norm(x, None, None, training=True))


def test_what_does_not_take_one_row_is_cut_elsewhere():
    with pytest.warns(hbp.TotalWarning, match=r"make of a whole batch(.|\n)*test_statistics\.py:\d+"):
        hbp.accumulate(hbp.compile(InTraining(), plain, ["grad"]), batches(), progress=False)


def test_parts_without_any_of_what_is_counted_say_nothing():
    torch.manual_seed(0)
    X, y = torch.randn(32, 4).double(), (torch.arange(32) % 8 == 3).long()

    def by_positives(o, t):
        return F.cross_entropy(o, t, reduction="sum") / (t == 1).sum()

    compiled = hbp.compile(nn.Linear(4, 2).double(), by_positives, ["grad"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        total = hbp.accumulate(compiled, list(zip(X.split(8), y.split(8), strict=True)), progress=False)
    torch.testing.assert_close(total.loss, compiled(X, y).loss, rtol=1e-10, atol=0)
