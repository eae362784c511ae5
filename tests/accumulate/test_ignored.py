"""Batches of which all labels are ignored: of a mean over labels they have no terms, but they are samples."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import hbpcompiler as hbp
from hbpcompiler.accumulate import sums

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


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("ignored", [-100, 0])
def test_a_batch_without_terms_counts_its_samples(monkeypatch, tmp_path, ignored, in_place):
    if in_place:
        monkeypatch.setattr(sums, "IN_PLACE_BYTES", 0)
    model, X, y = setting(ignored)
    compiled = hbp.compile(model, nn.CrossEntropyLoss(ignore_index=ignored), NAMES)
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
