"""Forwards that take another way with other batches: a sample has zeros for parameters that it does not reach."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import hbpcompiler as hbp
from hbpcompiler.accumulate import sums

NAMES = ["grad", "variance", "second_moment", "diag_ggn", "kflr"]
LENGTHS = (2, 5, 3, 6, 4)
pytestmark = pytest.mark.filterwarnings("ignore::hbpcompiler.errors.UnusedParametersWarning",
                                        "ignore::hbpcompiler.errors.LengthsWarning")


class Turning(nn.Module):
    """Sequences of more than three positions meet one layer more."""

    def __init__(self):
        super().__init__()
        self.all, self.long, self.head = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x):
        h = self.all(x).sum(1)
        if x.shape[1] > 3:
            h = h + self.long(x).tanh().sum(1)
        return self.head(torch.tanh(h))


def setting():
    torch.manual_seed(0)
    model = Turning().double()
    batches = [(torch.randn(samples, length, 2, dtype=torch.float64), torch.randint(2, (samples,)))
               for samples, length in zip((2, 3, 1, 2, 2), LENGTHS, strict=True)]
    return model, batches


def gradients(model, batches):
    """By parameter, of each sample, [N, *theta]."""
    parameters, rows = dict(model.named_parameters()), []
    for X, y in batches:
        for n in range(len(y)):
            loss = cross_entropy(model(X[n : n + 1]), y[n : n + 1])
            rows.append(torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True))
    return {name: torch.stack(each) for name, each in zip(parameters, zip(*rows, strict=True), strict=True)}


def check(total, right):
    for name, rows in right.items():
        torch.testing.assert_close(total.grad[name], rows.mean(0))
        torch.testing.assert_close(total.second_moment[name], rows.square().mean(0))
        torch.testing.assert_close(total.variance[name], rows.var(0, unbiased=False))


@pytest.mark.parametrize("in_place", [False, True])
def test_gradients_are_zero_where_a_parameter_is_not_reached(tmp_path, monkeypatch, in_place):
    """Of any order, resumed and merged. Factors of the layer are those of the samples that reach it, times the share
    that these have."""
    if in_place:
        monkeypatch.setattr(sums, "IN_PLACE_BYTES", 0)
    model, batches = setting()
    right = gradients(model, batches)
    compiled = hbp.compile(model, None, NAMES)
    long = [batch for batch in batches if batch[0].shape[1] > 3]
    reached = hbp.accumulate(compiled, long, progress=False)
    found = []
    for order in ((0, 1, 2, 3, 4), (4, 2, 0, 3, 1), (2, 0, 1, 4, 3)):
        cut = [batches[number] for number in order]
        path = tmp_path / f"{order}.pt"
        hbp.accumulate(compiled, cut, progress=False, checkpoint=path, max_batches=2)
        found.append(hbp.accumulate(compiled, cut, progress=False, checkpoint=path))
        parts = [hbp.accumulate(compiled, part, progress=False) for part in (cut[:2], cut[2:])]
        found += [hbp.Total.merge(*parts), hbp.Total.load(path, model)]
    for total in found:
        check(total, right)
        factors, own = total.kflr["long.weight"], reached.kflr["long.weight"]
        share = reached.samples / total.samples
        torch.testing.assert_close(factors.A, own.A * share)
        torch.testing.assert_close(factors.B, own.B * share)
        for name, value in found[0].kflr.items():
            torch.testing.assert_close(total.kflr[name], value)
        assert hbp.curvature(total.kflr).to_dense().shape == (26, 26)


def test_counts_of_what_some_batches_do_not_reach_are_refused():
    model, batches = setting()
    compiled = hbp.compile(model, None, ["grad_histogram"])
    for cut in (batches, batches[::-1]):
        with pytest.raises(hbp.InputError, match=r"grad_histogram cannot be added up.* long\.bias, long\.weight"):
            hbp.accumulate(compiled, cut, progress=False)


def test_a_layer_that_has_positions_in_some_batches_only():
    """[N, d] are one position each."""
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(2, 3), nn.Linear(3, 2)

        def forward(self, x):
            h = torch.tanh(self.first(x))
            return self.head(h if h.dim() == 2 else h.sum(1))

    torch.manual_seed(0)
    model = Pooled().double()
    compiled = hbp.compile(model, None, ["kflr"])
    flat, y = torch.randn(4, 2, dtype=torch.float64), torch.randint(2, (4,))
    rows = torch.randn(3, 5, 2, dtype=torch.float64), torch.randint(2, (3,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        right = hbp.accumulate(compiled, [(flat.unsqueeze(1), y), rows], progress=False)
        for batches in ([(flat, y), rows], [rows, (flat, y)]):
            total = hbp.accumulate(compiled, batches, progress=False)
            torch.testing.assert_close(total.kflr["first.weight"], right.kflr["first.weight"])
