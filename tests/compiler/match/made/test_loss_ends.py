"""Losses that end in what has no rule: one function of each sample alone, and the mean or sum of that."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler import options
from hbpcompiler.compiler.match.made.derived import Deriving
from hbpcompiler.compiler.match.made.loss_ends import with_derived_end
from hbpcompiler.compiler.match.operation.examples import Examples
from hbpcompiler.reference import reference
from hbpcompiler.rule.registry import builtin
from tests.agreement import close
from tests.compiler.match.made.taken_away import without
from tests.selection import few
from tests.stages import matched

QUANTITIES = ("grad", "batch_l2", "variance", "diag_ggn", "diag_h")
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(4, 3, dtype=torch.float64, generator=GENERATOR)
SHARES = torch.rand(4, 2, dtype=torch.float64, generator=GENERATOR)
SIGNS = torch.where(SHARES > 0.5, 1.0, -1.0).double()


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def divergence(output, shares):
    return F.kl_div(output.log_softmax(1), shares, reduction="batchmean")


def two_terms(output, shares):
    return 0.3 * (output - shares).square().mean() + (output.exp() * shares).sum() / output.shape[0]


def weighted_mean(output, shares):
    return ((output - shares) ** 2 * shares).sum() / shares.sum()


class Summed(nn.Module):
    reduction = "sum"

    def forward(self, output, shares):
        return -(output.sin() * shares).sum() / 2


LOSSES = {
    "divergence": (divergence, SHARES), "two terms": (two_terms, SHARES), "soft margins": (F.soft_margin_loss, SIGNS),
    "a sum": (Summed(), SHARES),
    "triplets": (lambda output, shares: F.triplet_margin_loss(output, shares, -shares), SHARES),
    "cosines": (lambda output, shares: F.cosine_embedding_loss(output, shares, shares[:, 0].sign()), SHARES),
}
USES = [("divergence", "div"), ("soft margins", "neg"), ("soft margins", "mul"), ("soft margins", "mean"),
        ("two terms", "mean"), ("two terms", "sum"), ("two terms", "add"), ("two terms", "mul"), ("a sum", "sum"),
        ("a sum", "neg"), ("a sum", "div"), ("triplets", "mean"), ("cosines", "mul")]


def compiled_without(loss, operation, monkeypatch):
    monkeypatch.setattr(options, "with_rules", lambda paths: without(f"aten.{operation}"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hbp.IndefiniteCurvatureWarning)
        return hbp.compile(model(), loss, quantities=QUANTITIES)


@few(7, "the same way of other losses")
@pytest.mark.parametrize(("name", "operation"), USES)
def test_a_loss_without_one_of_its_rules(name, operation, monkeypatch):
    loss, y = LOSSES[name]
    compiled = compiled_without(loss, operation, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hbp.IndefiniteCurvatureWarning)
        result = compiled(X, y)
    assert "No rule, so that torch differentiates them" in compiled.code
    close(result.loss, loss(model()(X), y).detach(), "the loss")
    scales = reference(model(), loss, [X], y, "second_moment")
    for quantity in QUANTITIES:
        for key, expected in reference(model(), loss, [X], y, quantity).items():
            scale = scales[key] if quantity == "variance" else None
            close(result[quantity][key], expected, f"{quantity} of {key}", scale)


REFUSED = {
    "divided by what the batch says": ("div", weighted_mean, "which has no sample axis in front"),
    "cut": ("sub", lambda output, y: (output - y).square().mean() - y.mean() - output.sum().clamp(max=100.0),
            "has no sample axis in front"),
    "cut beyond a limit": ("neg", lambda output, y: -output.exp().sum().clamp(max=1e5),
                           "more than to add multiples of them up"),
    "a root": ("neg", lambda output, y: -output.exp().sum().sqrt(), "more than to add multiples of them up"),
    "the largest": ("mul", lambda output, y: output.square().sum(1).max() * 3, "neither the mean nor the sum"),
    "the largest of samples that are one": ("mul", lambda output, y: output.square().sum(1).max() * 3,
                                            "neither the mean nor the sum"),
    "labels that may be left out": ("mul", lambda output, y: 3 * F.nll_loss(output.log_softmax(1), y.long()[:, 0]),
                                    "how it counts the samples may depend on their labels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_sample_alone_says_is_refused(name, monkeypatch):
    operation, loss, words = REFUSED[name]
    inputs = X[:1].expand(4, -1) if name.endswith("are one") else X
    with pytest.raises(hbp.UnsupportedOpError, match=words):
        compiled_without(loss, operation, monkeypatch)(inputs, SHARES)


class Regularised(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("strength", torch.zeros((), dtype=torch.float64))

    def forward(self, output, y):
        mean = (output - y).square().mean()
        return -mean + self.strength * mean.relu()


def test_a_buffer_that_is_zero_at_first_may_be_another_number(monkeypatch):
    with pytest.raises(hbp.UnsupportedOpError, match="more than to add multiples of them up"):
        compiled_without(Regularised(), "neg", monkeypatch)(X, SHARES)


def test_a_loss_whose_rules_are_there_is_left_as_it_is():
    graph = matched(model(), X, torch.tensor([0, 1, 1, 0])).graph
    assert with_derived_end(graph, Deriving(builtin(), Examples([X], {}))) is graph


def test_an_axis_of_what_the_batch_is_summed_to_is_no_error_of_pythons():
    def loss(output, y):
        return torch.einsum("ni,nj->ij", output, y).diagonal().sum()

    with pytest.raises(hbp.UnsupportedOpError, match=r"aten\.diagonal in the loss"):
        hbp.compile(model(), loss, ["grad"])(X, SHARES)
