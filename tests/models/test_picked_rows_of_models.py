"""Models that pick by a mask, and what asks how many rows there are."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from tests.agreement import agree, close
from tests.models.test_picked_rows import SECOND, by_numbers_of_lengths, double, numbers, squared
from tests.selection import few


class Experts(nn.Module):
    """Rows go to one of two networks each."""

    def __init__(self, split):
        super().__init__()
        self.first, self.second, self.split = nn.Linear(2, 3), nn.Sequential(nn.Linear(2, 4), nn.GELU(),
                                                                             nn.Linear(4, 3)), split
        self.norm = nn.LayerNorm(3)

    def forward(self, x):
        return self.split(self, torch.tanh(x))


def put(self, x):
    out = x.new_zeros(*x.shape[:-1], 3)
    positive = x[..., 0] > 0
    out[positive] = self.norm(self.first(x[positive]))
    out[~positive] = self.second(x[~positive])
    return out


def put_by_places(self, x):
    out = self.norm(self.first(x))
    chosen = (x.sum(-1) > 0).nonzero().squeeze(1)
    out.index_add_(0, chosen, self.second(x[chosen]))
    return out


def scattered(self, x):
    out = self.first(x)
    chosen = out > 0
    return out.masked_scatter(chosen, self.norm(self.second(x))[chosen] ** 2)


def gated(self, x):
    out = torch.zeros_like(self.first(x))
    chosen = x[:, 1] < 0.1
    left, right = self.second(x[chosen]).softmax(-1).split([1, 2], -1)
    out[chosen] = left * self.norm(self.first(x))[chosen] + right.sum(1, keepdim=True)
    return out


@few(1, "further cases of one kind")
@pytest.mark.parametrize(("split", "shape"), [(put, (6, 2)), (put, (4, 3, 2)), (put_by_places, (6, 2)),
                                              (scattered, (6, 2)), (gated, (6, 2))])
def test_experts(split, shape):
    torch.manual_seed(2)
    model, X = Experts(split).double(), double(*shape)
    y = torch.randint(3, shape[:-1])

    def loss(o, y):
        return F.cross_entropy(o.flatten(0, -2), y.flatten())

    quantities = [name for name in SECOND if name != "diag_ggn"]
    result = hbp.compile(model, loss, [*quantities, "diag_ggn"], verify="full")(X, y)
    agree(result, model, loss, [X], y)


def changed_since(o, y):
    """Two masks that are written alike; one is changed in place, when it has been used."""
    first, second = y["y"] > 0, y["y"] > 0
    scale = y["t"][first].square().mean()
    first &= y["m"]
    return o[second].exp().sum() * scale


def changed_in_a_view(o, y):
    valid, scored = y["y"] >= 0, y["y"] >= 0
    scored[:2] = False
    return o.square().sum() * y["t"][scored].square().sum() / y["t"][valid].square().sum()


def written_into_zeros(o, y):
    one, other = torch.zeros_like(y["m"]), torch.zeros_like(y["m"])
    one[:2], other[2:] = True, True
    return o[one].square().mean() + o[other].abs().mean() + o[y["m"] | one].square().mean()


@pytest.mark.parametrize("loss", [changed_since, changed_in_a_view, written_into_zeros])
def test_masks_that_were_alike(loss):
    torch.manual_seed(0)
    model = nn.Linear(3, 3).double()
    compiled = hbp.compile(model, loss, ["grad"], verify=False)
    for size, share in ((6, 1.0), (4, 0.5), (7, 0.2), (5, 0.0)):
        X = double(size, 3)
        y = {"y": torch.arange(size) % 3, "m": torch.rand(size) < share, "t": double(size, 3)}
        agree(compiled(X, y), model, loss, [X], y)


def sorted_rows(o, y):
    return o[y > 0].sort(0).values[:, 0].cumsum(0).mean()


def median(o, y):
    return o[y > 0].median()


def of_two_masks(o, y):
    return torch.cat([o[y > 0], o[y == 0]]).pow(2).mean()


def turned(o, y):
    return (o[y > 0].flip(0) * o[y > 0]).sum()


@pytest.mark.parametrize("loss", [sorted_rows, median, of_two_masks, turned])
def test_what_needs_the_number_of_rows_is_refused(loss):
    model, X = nn.Linear(2, 3).double(), double(5, 2)
    with pytest.raises(hbp.HbpError, match="depends on values"):
        hbp.compile(model, loss, ["grad"])(X, torch.tensor([0, 1, 2, 1, 1]))


def test_numbers_of_lengths():
    model, X, y = numbers()
    compiled = hbp.compile(model, by_numbers_of_lengths, ["grad", "batch_grad", "diag_ggn", "diag_h"], verify="full")
    for rows in (5, 1, 3):
        agree(compiled(X[:rows], y[:rows]), model, by_numbers_of_lengths, [X[:rows]], y[:rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_of_lengths_leave_the_type(dtype):
    def loss(o, y):
        return o[y > 0].square().mean() * (len(y[y > 0]) / len(y))

    model = nn.Linear(2, 3).to(dtype)
    X, y = torch.randn(5, 2, dtype=dtype), torch.tensor([0, 1, 2, 1, 1])
    result = hbp.compile(model, loss, ["grad"])(X, y)
    assert result.loss.dtype == dtype


class Positions(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(3, 4), function
        self.register_buffer("keep", torch.tensor([True, False, True, True]))

    def forward(self, x):
        return self.function(self, torch.tanh(self.linear(x)), x[..., 0] > 0)


def places_in_one_axis(self, h, mask):
    rows, steps = torch.where(mask)
    out = torch.zeros(len(h) * 3, 4)
    out[rows * 3 + steps] = h[rows, steps]
    return out.view(-1, 3, 4)


def some_positions(self, h, mask):
    kept = torch.tensor([True, False, True]).expand(len(h), -1)
    return h + h[kept].view(len(h), 2, 4).sum(1, keepdim=True)


@pytest.mark.parametrize("function", [places_in_one_axis, some_positions,
                                      lambda self, h, mask: h[..., self.keep] @ torch.ones(3, 4)])
def test_lengths_that_are_known_afterwards_are_refused(function):
    X = torch.randn(5, 3, 3)
    with pytest.raises(hbp.HbpError, match="depends on values"):
        hbp.compile(Positions(function), nn.MSELoss(), ["grad"])(X, torch.randn(5, 3, 4))


def test_who_asks_how_many_rows_there_are_is_told_so():
    def loss(o, y):
        return sum(row.square().sum() for row in o[y > 0].unbind())

    with pytest.raises(hbp.HbpError, match=r"in the loss, .*test_picked_rows_of_models\.py.*: how many rows"):
        hbp.compile(nn.Linear(2, 3).double(), loss, ["grad"])(double(5, 2), torch.tensor([0, 1, 2, 1, 1]))


def test_what_a_model_returns_must_have_all_samples():
    class Some(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 3)

        def forward(self, x):
            return self.linear(x)[x[:, 0] > 0]

    X = torch.tensor([[1.0, 2.0], [-1.0, 0.0], [3.0, 1.0]])
    with pytest.raises(hbp.HbpError, match=r"depends on values|reduces the batch"):
        hbp.compile(Some(), lambda o, y: o.sum(), ["grad"])(X, torch.zeros(3))


def test_missing_targets_that_the_loss_does_not_ask_for():
    model, X, y = numbers()
    compiled = hbp.compile(model, lambda o, y: ((o - y) ** 2).mean(), ["grad"])
    with pytest.raises(hbp.InputError, match=r"y contains NaN, first at index \[0, 1\]"):
        compiled(X, y)
    with pytest.raises(hbp.InputError, match="y contains NaN"):
        hbp.operator(model, nn.MSELoss(), (X, y))
    assert hbp.operator(model, squared, (X, y)).shape[0] == 21


@pytest.mark.parametrize("by_length", [False, True])
def test_rows_over_their_number(by_length):
    """Where there are none nothing is divided, and nothing is NaN."""
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.expert = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            h, mask = self.first(x).tanh().clone(), x[:, 0] > 0
            h[mask] = self.expert(h[mask]) / (len(h[mask]) if by_length else mask.sum())
            return h

    torch.manual_seed(0)
    model, y = Shared().double(), torch.tensor([0, 1, 2, 0])
    compiled = hbp.compile(model, quantities=["grad"])
    for x in (double(4, 3), -double(4, 3).abs(), double(4, 3).abs()):
        found = compiled(x, y)
        right = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()),
                                    allow_unused=True, materialize_grads=True)
        for gradient, expected in zip(found.grad.values(), right, strict=True):
            close(gradient, expected, "grad")


@pytest.mark.parametrize("loss", [
    lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten(), reduction="none")[y.flatten() > 0].mean(),
    lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten(), reduction="none",
                                 label_smoothing=0.1)[y.view(-1) > 0].mean(),
    lambda o, y: F.nll_loss(o.log_softmax(-1).flatten(0, 1), y.flatten(), reduction="none").masked_select(
        y.flatten() > 0).mean(),
    lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)[y > 0].mean(),
], ids=["flat", "smoothed", "selected", "laid out"])
def test_means_of_tokens_losses_that_a_mask_picks(loss):
    """Cross-entropy without a reduction is taken apart behind what is written for the rows."""
    torch.manual_seed(0)
    model = nn.Linear(3, 4).double()
    compiled = hbp.compile(model, loss, ["grad", "diag_h"])
    for samples in (5, 2):
        X, y = torch.randn(samples, 3, 3, dtype=torch.float64), torch.randint(4, (samples, 3))
        agree(compiled(X, y), model, loss, [X], y)
