"""A program that stops at a batch: model and loss say why, in their own words, wherever it is met."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp

CLASSES = 4


def picked(output, target):
    chosen = target != 1
    return F.cross_entropy(output[chosen], target[chosen])


def made(output, target):
    return F.cross_entropy(output, torch.where(target == 1, -100, target))


def of_losses(output, target):
    return F.cross_entropy(output, target, reduction="none")[target != 1].sum()


def of_classes(output, target):
    chosen = target != 1
    return -output.log_softmax(1)[chosen].gather(1, target[chosen].unsqueeze(1)).sum()


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, CLASSES)).double()


def batch(samples=20):
    """All classes in the first rows, on which a model is tried."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 5, (samples, 2), generator=generator), torch.arange(samples) % CLASSES


def with_label(target, label, row=11):
    other = target.clone()
    other[row] = label
    return other


@pytest.mark.parametrize("backend", ["python", "torchscript"])
@pytest.mark.parametrize("loss", [picked, made])
def test_a_label_that_is_no_class(loss, backend):
    X, y = batch()
    compiled = hbp.compile(model(), loss, quantities=["batch_l2"], backend=backend)
    with pytest.raises(hbp.InputError, match=r"y does not fit the loss.*Target 9 is out of bounds.*cross_entropy"):
        compiled(X, with_label(y, 9))  # not among the rows on which it is tried
    before = compiled(X, y)
    with pytest.raises(hbp.InputError, match=r"y does not fit the loss.*Target -2 is out of bounds.*cross_entropy"):
        compiled(X, with_label(y, -2))
    torch.testing.assert_close(compiled(X, y).batch_l2, before.batch_l2, rtol=0, atol=0)


@pytest.mark.parametrize("label", [9, -3])
@pytest.mark.parametrize("loss", [of_losses, of_classes])
def test_a_label_behind_a_mask_at_the_first_call_and_later(loss, label):
    X, y = batch()
    compiled = hbp.compile(model(), loss, quantities=["grad"])
    for _ in range(2):
        with pytest.raises(hbp.InputError, match="out of bounds"):
            compiled(X, with_label(y, label))
        compiled(X, y)


def test_an_input_that_is_no_row_of_a_table():
    X, y = batch()
    compiled = hbp.compile(model(), quantities=["grad"])
    compiled(X, y)
    X[11, 1] = 7
    with pytest.raises(hbp.InputError, match=r"X does not go through the model.*index out of range.*module '0'"):
        compiled(X, y)


def test_batches_of_a_loader_are_named():
    X, y = batch()
    wrong = [(X, y), (X, with_label(y, 9))]
    with pytest.raises(hbp.InputError, match=r"batch 1 of the loader: y does not fit the loss.*Target 9"):
        hbp.accumulate(hbp.compile(model(), picked, quantities=["grad"]), wrong)
    with pytest.raises(hbp.InputError, match=r"batch 1: y does not fit the loss.*Target 9"):
        hbp.operator(model(), F.cross_entropy, wrong, "ggn")
    replaced = [(X, y), (X, y)]
    operator = hbp.operator(model(), F.cross_entropy, replaced, "hessian")
    replaced[1] = wrong[1]
    with pytest.raises(hbp.InputError, match=r"batch 1: y does not fit the loss.*Target 9"):
        operator @ torch.ones(operator.shape[0], dtype=torch.float64)


@pytest.mark.parametrize("error", [IndexError("somewhere else"), RuntimeError("a fault of the program"),
                                   torch.OutOfMemoryError("no memory")])
def test_what_neither_model_nor_loss_stop_at_is_said_as_it_is(error, monkeypatch):
    X, y = batch()
    compiled = hbp.compile(model(), quantities=["grad"])
    compiled(X, y)

    def broken(*arguments, **keywords):
        raise error

    monkeypatch.setattr(compiled._last[1], "run", broken)
    with pytest.raises(type(error), match=str(error)):
        compiled(X, y)
