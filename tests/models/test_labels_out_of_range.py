"""Labels and other whole numbers out of range, where only the operation that picks can tell: a clear word, never
torch's own error, at the first call and at later ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp

X, Y = torch.linspace(-1, 1, 24).view(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
HIGH, NEGATIVE = torch.tensor([0, 1, 2, 5, 1, 2]), torch.tensor([0, 1, -3, 0, 1, 2])


def of_rows(o, y):
    return F.cross_entropy(o[y != 1], y[y != 1], reduction="sum")


def of_losses(o, y):
    return F.cross_entropy(o, y, reduction="none")[y != 1].sum()


def of_picked_classes(o, y):
    kept = y != 1
    return -o.log_softmax(1)[kept].gather(1, y[kept].unsqueeze(1)).sum()


LOSSES = [of_rows, of_losses, of_picked_classes]
SAYS = r"out of bounds"


@pytest.mark.parametrize("labels", [HIGH, NEGATIVE], ids=["high", "negative"])
@pytest.mark.parametrize("loss", LOSSES)
def test_labels_behind_a_mask(loss, labels):
    compiled = hbp.compile(nn.Linear(4, 3), loss, ["grad"])
    for _ in range(2):
        with pytest.raises(hbp.InputError, match=SAYS):
            compiled(X, labels)
        compiled(X, Y)


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), of_rows])
def test_operators_over_a_loader(loss, kind):
    with pytest.raises(hbp.InputError, match=SAYS):
        hbp.operator(nn.Linear(4, 3), loss, [(X, Y), (X, HIGH)], kind)


def test_data_sets():
    with pytest.raises(hbp.InputError, match=r"batch 1 of the loader: .*" + SAYS):
        hbp.accumulate(hbp.compile(nn.Linear(4, 3), of_rows, ["grad"]), [(X, Y), (X, HIGH)])


def test_words_without_a_vector():
    compiled = hbp.compile(nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 3)), nn.CrossEntropyLoss(), ["grad"])
    compiled(torch.tensor([0, 3]), Y[:2])
    with pytest.raises(hbp.InputError, match=r"X does not go through the model.*index out of range"):
        compiled(torch.tensor([0, 4]), Y[:2])
