"""Sums of losses, in float64 against brute force."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from tests.models.test_flat_token_losses import WEIGHT
from tests.models.test_modules import draw
from tests.models.test_outputs import EXACT, Several, Summed, check, check_sampled
from tests.selection import few

SUMS = {
    "penalised output": lambda out, y: F.cross_entropy(out, y) + 0.1 * out.square().mean(),
    "mean and sum": lambda out, y: F.cross_entropy(out, y) + 0.3 * out.square().sum(),
    "difference": lambda out, y: 2 * F.cross_entropy(out, y) - (out**3).mean() / 4 + 1,
    "divided by the batch": lambda out, y: out.pow(4).sum() / out.shape[0] + F.cross_entropy(out, y, reduction="sum"),
    "list": lambda out, y: sum([F.cross_entropy(out, y), F.cross_entropy(-out, y), out.sigmoid().mean()]),
    "weighted": lambda out, y: WEIGHT[0] * F.cross_entropy(out, y) - WEIGHT[1] * out.square().mean(),
    "nested": lambda out, y: -(-(F.cross_entropy(out, y) + out.exp().mean()) * 0.5),
}


@few(3, "other sums")
@pytest.mark.parametrize("name", list(SUMS))
def test_sums_of_losses(name):
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    check(model, Summed(SUMS[name], "mean"), (draw(3, 2),), torch.tensor([0, 2, 1]), [*EXACT, "batch_l2"])


def test_tasks():
    """Each head has its loss; one head's has no curvature."""
    def loss(output, target):
        labels, value = target["labels"], target["value"]
        return F.cross_entropy(output["labels"], labels) + 0.5 * F.l1_loss(output["value"], value)

    model = Several(lambda m, s, h: {"labels": m, "value": s})
    target = {"labels": torch.tensor([0, 1, 1]), "value": draw(3, 2)}
    check(model, loss, (draw(3, 2),), target)
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.IndefiniteCurvatureWarning)
        result = hbp.compile(model, loss, ["kfac", "kflr", "sqrt_ggn"], mc_samples=2)(draw(3, 2), target)
    assert not result.kflr["scale.weight"].B.any()


@few(1, "further cases of one kind")
@pytest.mark.parametrize("loss", [
    lambda out, y: F.cross_entropy(out, y) + 2 * F.cross_entropy(3 * out, y, reduction="sum"),
    lambda out, y: F.cross_entropy(out, y) - (out**3).mean(),
])
@pytest.mark.filterwarnings("ignore:the loss")
def test_sampled_sums(loss):
    torch.manual_seed(0)
    model, x, y = nn.Linear(2, 3).double(), draw(2, 2), torch.tensor([0, 2])
    check_sampled(model, loss, x, y)


def test_a_penalty_on_parameters_is_refused():
    model = nn.Linear(2, 3).double()

    def loss(out, y):
        return F.cross_entropy(out, y) + 0.1 * model.weight.square().sum()

    with pytest.raises(hbp.CompileError):
        hbp.compile(model, loss, ["grad"])(draw(2, 2), torch.tensor([0, 2]))

    class Penalised(nn.Linear):
        def forward(self, x):
            return super().forward(x), self.weight.square().sum()

    with pytest.raises(hbp.UnsupportedOpError, match=r"reads parameter 'weight' alone(.|\n)*2 \* c \* w to grad"):
        hbp.compile(Penalised(2, 3).double(), lambda out, y: F.cross_entropy(out[0], y) + 0.1 * out[1], ["grad"])(
            draw(2, 2), torch.tensor([0, 2]))

    def twice(out, y):  # one line that reads the weight two times
        return F.cross_entropy(out, y) + model.weight[0].sum() * model.weight[1].sum()

    with pytest.raises(hbp.UnsupportedOpError) as caught:
        hbp.compile(model, twice, ["grad"])(draw(2, 2), torch.tensor([0, 2]))
    lines = [line for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert lines, str(caught.value)
    assert len(lines) == len(set(lines))


def test_a_curved_function_of_the_whole_loss_is_refused():
    for loss in (lambda out, y: F.cross_entropy(out, y).sqrt(),
                 lambda out, y: F.cross_entropy(out, y) * out.square().mean()):
        with pytest.raises(hbp.UnsupportedOpError, match="only sums and multiples of means"):
            hbp.compile(nn.Linear(2, 3).double(), loss, ["grad"])(draw(2, 2), torch.tensor([0, 2]))
