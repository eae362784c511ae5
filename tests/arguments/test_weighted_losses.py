"""Weighted samples of all kinds of losses, and each sample's loss l_n itself."""


import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import Weighted, reference
from tests.agreement import close
from tests.arguments.weighing import DOUBLE, EXACT, WEIGHTS, check, check_losses, check_ones, compile_quietly, run
from tests.selection import few


class Tagger(nn.Module):
    """Two tied layers and two tags for each sample."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(3, 3).double(), nn.Linear(3, 6).double()
        self.scale = nn.Parameter(torch.ones((), dtype=DOUBLE))
        self.unused = nn.Linear(2, 2).double()

    def forward(self, x):
        return (self.scale * self.head(torch.tanh(self.layer(torch.tanh(self.layer(x)))))).view(len(x), 3, 2)


CLASSES = torch.tensor([0.5, 2.0, 1.5], dtype=DOUBLE)
TAGS = torch.tensor([[0, 2], [-100, 1], [1, 1], [2, -100]])
VALUES = torch.rand(4, 3, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


def sums_of_losses(output, target):
    each = F.cross_entropy(output, target, reduction="none")
    counted = target != -100
    return (2 * F.cross_entropy(output, target, CLASSES) + (each * counted).sum() / counted.sum() + 3.5
            - 0.5 * output.square().sum() / len(output))


def flat(output, target):
    return F.cross_entropy(output.transpose(1, 2).reshape(-1, 3), target.view(-1), CLASSES, label_smoothing=0.1)


class Total(nn.Module):
    """A sum with a part that is a mean, and a number that is no sample's."""

    reduction = "sum"

    def forward(self, output, target):
        return (output - target).pow(4).sum() + len(output) * F.huber_loss(output, target) + 2.0


LOSSES = {
    "tokens": (nn.CrossEntropyLoss(CLASSES), TAGS),
    "summed tokens": (nn.CrossEntropyLoss(CLASSES, label_smoothing=0.1, reduction="sum"), TAGS),
    "flat tokens": (flat, TAGS),
    "sums of losses": (sums_of_losses, TAGS),
    "binary": (nn.BCEWithLogitsLoss(weight=CLASSES[:, None], pos_weight=CLASSES[:, None] + 1), VALUES),
    "log-likelihoods": (lambda o, t: F.nll_loss(o.log_softmax(1), t, CLASSES), TAGS),
    "total": (Total(), VALUES),
}


@few(4, "other losses")
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    loss, y = LOSSES[name]
    X = torch.randn(4, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    if name not in ("sums of losses", "log-likelihoods"):  # these are not known to be convex: no square roots
        check(Tagger(), loss, X, y, WEIGHTS)
        return
    compiled = compile_quietly(Tagger(), loss, [*EXACT, "batch_loss"])
    result = run(compiled, X, y, sample_weights=WEIGHTS)
    for quantity in EXACT:
        for key, value in reference(compiled.model, Weighted(loss, WEIGHTS), [X], y, quantity).items():
            if not key.startswith("unused"):
                close(result[quantity][key], value, f"{quantity} of {key}")
    check_losses(compiled, loss, result, X, y, WEIGHTS)
    check_ones(compiled, X, y)


def test_each_sample_s_loss_is_that_of_the_sample_alone():
    """Where nothing is shared by the samples, and for one that has no loss of its own."""
    model = Tagger()
    X = torch.randn(4, 3, dtype=DOUBLE)
    result = run(hbp.compile(model, nn.CrossEntropyLoss(reduction="sum"), ["batch_loss"]), X, TAGS)
    for n in range(4):
        alone = nn.CrossEntropyLoss(reduction="sum")(model(X[n : n + 1]), TAGS[n : n + 1])
        torch.testing.assert_close(result.batch_loss[n], alone)
    assert list(result) == ["batch_loss"]
    assert result["batch_loss"].shape == (4,)
    result.to_parameters()


def test_a_rule_that_does_not_say_the_losses(tmp_path):
    rule = tmp_path / "soft_margin.py"
    rule.write_text("""
import torch
from hbpcompiler.rule import ZERO, LossRule

RULE = LossRule(operations=["aten.soft_margin_loss"], residual=ZERO, reduction=lambda op: "mean",
                gradient=lambda op: -op.target * torch.sigmoid(-op.target * op.self) / op.shape("self")[0])
""")
    X, y = torch.randn(4, 3), torch.tensor([[1.0, -1.0]]).repeat(4, 1)
    compiled = hbp.compile(nn.Linear(3, 2), nn.SoftMarginLoss(), ["grad"], rules=[rule])
    compiled(X, y)
    with pytest.raises(hbp.InputError, match=r"sample_weights(.|\n)*aten.soft_margin_loss(.|\n)*`each`"):
        compiled(X, y, sample_weights=torch.ones(4))
    with pytest.raises(hbp.UnsupportedOpError, match=r"no l_n for batch_loss(.|\n)*aten.soft_margin_loss"):
        hbp.compile(nn.Linear(3, 2), nn.SoftMarginLoss(), ["batch_loss"], rules=[rule])(X, y)
