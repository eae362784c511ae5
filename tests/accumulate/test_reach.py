"""Forwards that take another way with other batches: a sample has zeros for parameters that it does not reach."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import hbpcompiler as hbp
from tests.selection import few, slow

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


@slow("a second or more; shorter ones of its kind stay")
@few(1, "in place the sums are the same")
@pytest.mark.parametrize("in_place", [False, True])
def test_gradients_are_zero_where_a_parameter_is_not_reached(tmp_path, in_place):
    """Of any order, resumed and merged. Factors of the layer are those of the samples that reach it, times the share
    that these have."""
    model, batches = setting()
    right = gradients(model, batches)
    limits = hbp.Limits(grown_bytes=0) if in_place else None
    compiled = hbp.compile(model, None, NAMES, limits=limits)
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


ORDER = ["all.weight", "all.bias", "long.weight", "long.bias", "head.weight", "head.bias"]


@slow("a second or more; shorter ones of its kind stay")
def test_parameters_are_in_the_models_order():
    """Whichever a batch reached first: a vector of a curvature has theirs one behind the other."""
    model, batches = setting()
    total = hbp.accumulate(hbp.compile(model, None, ["kflr", "grad"]), batches, progress=False)
    parts = [hbp.accumulate(hbp.compile(model, None, ["kflr", "grad"]), part, progress=False)
             for part in (batches[2:3], batches[:2], batches[3:])]
    merged = hbp.Total.merge(*parts)
    for own in (total, merged):
        assert list(own.grad) == list(own.kflr) == list(own.stored) == ORDER
        assert hbp.curvature(own.kflr).names == tuple(ORDER)
    v = torch.randn(26, dtype=torch.float64)
    torch.testing.assert_close(hbp.curvature(merged.kflr) @ v, hbp.curvature(total.kflr) @ v)


@slow("a second or more; shorter ones of its kind stay")
@few(1, "in place the sums are the same")
@pytest.mark.parametrize("in_place", [False, True])
def test_quantities_chosen_for_what_some_batches_do_not_reach(tmp_path, in_place):
    """A batch may reach no parameter of a quantity, or of any."""
    model, batches = setting()
    right = gradients(model, batches)["long.weight"]
    limits = hbp.Limits(grown_bytes=0) if in_place else None
    whole = hbp.accumulate(hbp.compile(model, None, NAMES, limits=limits), batches, progress=False)
    for names in ({name: ["long.*"] for name in NAMES}, {"variance": ["long.*"], "diag_ggn": "*", "kflr": "long.*"}):
        compiled = hbp.compile(model, None, names, limits=limits)
        for order in ((0, 1, 2, 3, 4), (4, 2, 0, 3, 1), (2, 0, 1, 4, 3)):
            cut, path = [batches[number] for number in order], tmp_path / f"{len(names)}{order}.pt"
            hbp.accumulate(compiled, cut, progress=False, checkpoint=path, max_batches=2) if order[0] != 2 else None
            total = hbp.accumulate(compiled, cut, progress=False, checkpoint=path)
            torch.testing.assert_close(total.variance["long.weight"], right.var(0, unbiased=False))
            assert list(total.variance) == ["long.weight", "long.bias"]
            for name in names:
                for parameter, value in total[name].items():
                    torch.testing.assert_close(value, whole[name][parameter])
    with pytest.raises(hbp.HbpError, match=r"chosen for variance, kflr reaches the loss with any batch"):
        hbp.accumulate(compiled, [batches[0], batches[2]], progress=False)


@slow("a second or more; shorter ones of its kind stay")
def test_counts_of_what_some_batches_do_not_reach_are_refused():
    model, batches = setting()
    refused = pytest.raises(hbp.InputError, match=r"grad_histogram cannot be added up.* long\.bias, long\.weight")
    for patterns in ("*", "long.*"):
        compiled = hbp.compile(model, None, {"grad_histogram": patterns})
        for cut in (batches, batches[::-1]):
            with refused:
                hbp.accumulate(compiled, cut, progress=False)
    compiled = hbp.compile(model, None, ["grad_histogram"])
    parts = [hbp.accumulate(compiled, [batch], progress=False) for batch in batches[:2]]
    with refused:
        hbp.Total.merge(*parts)


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


@pytest.mark.parametrize("zero", [lambda o: (o * 0).sum(), lambda o: (0.0 * o).mean(), lambda o: o.sum() * 0])
def test_a_zero_of_the_output_that_a_loss_begins_with(zero):
    """It is there for its dtype and device, and says nothing of how much a batch counts."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    X, y = torch.randn(12, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0])

    def loss(output, y):
        total, mask = zero(output), y == 1
        if mask.any():
            total = total + nn.functional.cross_entropy(output[mask], y[mask])
        return total

    compiled = hbp.compile(model, loss, ["grad", "diag_ggn"])
    batches = [(X[:4], y[:4]), (X[4:8], y[4:8]), (X[8:], y[8:])]
    found, whole = hbp.accumulate(compiled, batches), compiled(X, y)
    for name, value in whole.grad.items():
        torch.testing.assert_close(found.grad[name], value)
        torch.testing.assert_close(found.diag_ggn[name], whole.diag_ggn[name])
