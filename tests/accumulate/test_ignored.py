"""Batches of which all labels are ignored: of a mean over labels they have no terms, but they are samples."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import hbpcompiler as hbp
from tests.selection import few, slow

NAMES = ["grad", "variance", "second_moment", "diag_ggn", "kflr"]
LENGTHS = (2, 3, 1, 2)


class Tagger(nn.Module):
    """A label for each position."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(5, 3), nn.Linear(3, 4)

    def forward(self, x):
        return torch.tanh(self.head(torch.tanh(self.words(x)))).mT


def setting(ignored):
    """The second batch is all ignored, and of the others some labels are."""
    torch.manual_seed(0)
    model, X = Tagger().double(), torch.randint(5, (8, 6))
    y = torch.randint(1, 4, (8, 6)).masked_fill(torch.rand(8, 6) < 0.3, ignored)
    y[2:5] = ignored
    return model, X, y


@few(2, "further cases of one kind")
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("ignored", [-100, 0])
def test_a_batch_without_terms_counts_its_samples(tmp_path, ignored, in_place):
    model, X, y = setting(ignored)
    limits = hbp.Limits(grown_bytes=0) if in_place else None
    compiled = hbp.compile(model, nn.CrossEntropyLoss(ignore_index=ignored), NAMES, limits=limits)
    whole = compiled(X, y)
    batches = list(zip(X.split(LENGTHS), y.split(LENGTHS), strict=True))
    right = cross_entropy(model(X), y, ignore_index=ignored)
    gradients = torch.autograd.grad(right, list(model.parameters()))
    for order in ((0, 1, 2, 3), (1, 0, 3, 2), (3, 2, 1, 0)):
        cut, path = [batches[number] for number in order], tmp_path / f"{order}.pt"
        hbp.accumulate(compiled, cut, progress=False, checkpoint=path, max_batches=2)
        total = hbp.accumulate(compiled, cut, progress=False, checkpoint=path)
        torch.testing.assert_close(total.loss, right)
        assert (total.samples, total.terms) == (8, int((y != ignored).sum()))
        for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
            torch.testing.assert_close(total.grad[name], gradient)
        for name in NAMES:
            for parameter, value in whole[name].items():
                assert isinstance(value, torch.Tensor) or value.B is not None
                torch.testing.assert_close(total[name][parameter], value)


def test_a_data_set_without_terms_is_refused():
    model, X, y = setting(-100)
    compiled = hbp.compile(model, None, ["grad"])
    with pytest.raises(hbp.InputError, match="a mean over no terms"):
        hbp.accumulate(compiled, [(X[2:5], y[2:5])], progress=False)
    with pytest.raises(hbp.InputError, match="every target is the ignored index"):
        compiled(X[2:5], y[2:5])


@slow("a second or more; shorter ones of its kind stay")
def test_ekfac_of_such_batches():
    model, X, y = setting(-100)
    cut = list(zip(X.split(LENGTHS), y.split(LENGTHS), strict=True))
    cut = [cut[1], cut[0], *cut[2:]]
    whole = hbp.ekfac(model, None, [(X, y)], "exact", progress=False)
    torch.testing.assert_close(hbp.ekfac(model, None, cut, "exact", progress=False).to_dense(), whole.to_dense())


def test_with_class_weights_and_a_count():
    model, X, y = setting(-100)
    weight = torch.tensor([1.0, 4.0, 0.5, 2.0], dtype=torch.float64)
    compiled = hbp.compile(model, nn.CrossEntropyLoss(weight), NAMES)
    whole = compiled(X, y)
    batches = list(zip(X.split(LENGTHS), y.split(LENGTHS), strict=True))
    total = hbp.accumulate(compiled, batches, count=lambda batch: weight[batch[1][batch[1] >= 0]].sum(), progress=False)
    for name in ("grad", "diag_ggn"):
        for parameter, value in whole[name].items():
            torch.testing.assert_close(total[name][parameter], value)


MADE = {
    "a mask": lambda o, y: cross_entropy(o[y > 0], y[y > 0]),
    "a second mask": lambda o, y: cross_entropy(o[y != 1], y[y != 1], ignore_index=2),
    "where": lambda o, y: cross_entropy(o, torch.where(y == 2, -100, y)),
    "arithmetic": lambda o, y: cross_entropy(o, (y + 1) % 4, ignore_index=1),
    "nll_loss": lambda o, y: nn.functional.nll_loss(o.log_softmax(1), y.masked_fill(y > 2, -100)),
    "of outputs": lambda o, y: cross_entropy(o, (o + y.unsqueeze(1)).argmax(1)),
    "classes": lambda o, y: cross_entropy(o, nn.functional.one_hot(y, 4).to(o.dtype)),
}


@few(3, "further cases of one kind")
@pytest.mark.parametrize("name", MADE)
def test_labels_that_the_loss_makes_are_counted(name):
    """None of the batch's own is one that is ignored. The first batch has no label that the masks pick."""
    torch.manual_seed(0)
    model, X, y = nn.Linear(3, 4).double(), torch.randn(17, 3).double(), torch.randint(4, (17,))
    y[:2] = 0
    compiled = hbp.compile(model, MADE[name], ["grad", "variance", "diag_ggn"])
    whole, batches = compiled(X, y), list(zip(X.split((2, 8, 7)), y.split((2, 8, 7)), strict=True))
    right = MADE[name](model(X), y)
    for cut in (batches, batches[::-1]):
        total = hbp.accumulate(compiled, cut, progress=False)
        torch.testing.assert_close(total.loss, right)
        for quantity in ("grad", "variance", "diag_ggn"):
            for parameter, value in whole[quantity].items():
                torch.testing.assert_close(total[quantity][parameter], value)


OF_LENGTHS = {
    "a mask": (lambda o, y: cross_entropy(o[y > 0], y[y > 0]), lambda y: y > 0),
    "the next word": (lambda o, y: cross_entropy(
        o[:, :-1].reshape(-1, 4), torch.where(y[:, 1:] == 2, -100, y[:, 1:]).reshape(-1)), lambda y: y[:, 1:] != 2),
    "positions first": (lambda o, y: cross_entropy(
        o.transpose(0, 1).reshape(-1, 4), y.t().masked_fill(y.t() == 0, -100).reshape(-1)), lambda y: y != 0),
    "up to a label": (lambda o, y: cross_entropy(o.mT, torch.where((y == 3).cumsum(1) > 0, -100, y)),
                      lambda y: (y == 3).cumsum(1) == 0),
}


@few(1, "further cases of one kind")
@pytest.mark.parametrize("name", OF_LENGTHS)
def test_labels_that_the_loss_makes_of_sequences_of_several_lengths(name):
    """Also where there are as many samples as positions."""
    torch.manual_seed(0)
    loss, counts = OF_LENGTHS[name]
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 4)).double()
    batches = [(torch.randint(7, shape), torch.randint(4, shape)) for shape in ((3, 4), (5, 6), (4, 4), (6, 6))]
    terms = [counts(y).sum() for _, y in batches]
    right = sum(loss(model(X), y) * own for (X, y), own in zip(batches, terms, strict=True)) / sum(terms)
    gradient = torch.autograd.grad(right, model[1].weight)[0]
    total = hbp.accumulate(hbp.compile(model, loss, ["grad"]), batches, progress=False)
    torch.testing.assert_close(total.loss, right)
    torch.testing.assert_close(total.grad["1.weight"], gradient)
    assert total.terms == sum(terms)


@pytest.mark.parametrize("loss", [
    lambda o, y: cross_entropy(o, y.masked_fill(o.argmax(1) == y, -100)),
    lambda o, y: cross_entropy(o, y.clamp(min=0), weight=torch.tensor([1.0, 2, 3, 4], dtype=o.dtype)),
])
def test_labels_that_nothing_but_the_loss_can_count_are_asked_for(loss):
    model, X, y = nn.Linear(3, 4).double(), torch.randn(8, 3).double(), torch.arange(8) % 4
    with pytest.raises(hbp.InputError, match="is a mean over weights or labels that depend on the batch; pass count="):
        hbp.accumulate(hbp.compile(model, loss, ["grad"]), [(X, y)], progress=False)


def test_a_batch_that_counts_nothing_may_be_nan():
    """By `count`, or as a mask picks none of it."""
    model, X, y = nn.Linear(3, 4).double(), torch.randn(8, 3).double(), torch.arange(8) % 4
    y[4:] = -100

    def loss(o, y):
        return cross_entropy(o, y, reduction="sum") / (y != -100).sum()

    compiled = hbp.compile(model, loss, ["grad", "variance", "second_moment"])
    for cut in (((X[:4], y[:4]), (X[4:], y[4:])), ((X[4:], y[4:]), (X[:4], y[:4]))):
        total = hbp.accumulate(compiled, cut, count=lambda batch: (batch[1] != -100).sum(), progress=False)
        whole = compiled(X, y)
        torch.testing.assert_close(total.loss, whole.loss)
        for quantity in ("grad", "variance", "second_moment"):
            torch.testing.assert_close(total[quantity]["weight"], whole[quantity]["weight"])
