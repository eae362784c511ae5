"""Losses and models that pick by a mask: o[mask], masked_select, nonzero, h[mask] = f(x[mask])."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from tests.agreement import agree, close
from tests.selection import few


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


SECOND = ["grad", "batch_grad", "batch_l2", "variance", "diag_ggn", "diag_h"]


def tokens():
    """[N, 4, 3] logits, and labels of which some are none."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    y = torch.tensor([[0, 1, -100, 2], [-100, 2, 1, -100], [1, 1, 0, -100], [0, -100, 2, 2], [2, 2, 0, 1]])
    return model, double(5, 4, 2), y


def numbers():
    """[N, 3] numbers, and targets of which some are missing."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    y = double(5, 3)
    y[0, 1] = y[3, 0] = y[3, 2] = torch.nan
    return model, double(5, 2), y


def picked(o, y):
    return F.cross_entropy(o[y != -100], y[y != -100])


def flattened(o, y):
    o, y = o.reshape(-1, 3), y.view(-1)
    kept = y >= 0
    return F.cross_entropy(o[kept], y[kept], reduction="sum")


def by_places(o, y):
    index = (y.flatten() != -100).nonzero().squeeze(1)
    return F.cross_entropy(o.flatten(0, 1)[index], y.flatten()[index], label_smoothing=0.1)


def by_two_columns(o, y):
    rows, columns = torch.where(y >= 0)
    return F.cross_entropy(o[rows, columns], y[rows, columns])


def with_class_weights(o, y):
    kept = y != -100
    return F.cross_entropy(o[kept], y[kept], torch.tensor([1.0, 2.0, 0.5], dtype=o.dtype))


def log_likelihood(o, y):
    kept = y != -100
    return F.nll_loss(F.log_softmax(o[kept], -1), y[kept])


def of_each_then_picked(o, y):
    losses = F.cross_entropy(o.mT, y.clamp(min=0), reduction="none")
    return losses[y >= 0].mean()


def focal(o, y):
    kept = y != -100
    losses = F.cross_entropy(o[kept], y[kept], reduction="none")
    return ((1 - torch.exp(-losses)) ** 2 * losses).mean()


def two_kinds(o, y):
    low, high = y == 0, y > 0
    return F.cross_entropy(o[low], y[low], reduction="sum") + 2 * F.cross_entropy(o[high], y[high], reduction="sum")


def by_class(o, y):
    kept = y >= 0
    return -o.log_softmax(-1)[kept, y[kept]].mean()


def by_class_in_order(o, y):
    kept = y >= 0
    scores = o[kept].log_softmax(-1)
    return -scores[torch.arange(len(scores)), y[kept]].sum() / len(scores)


def of_classes_from_one(o, y):
    """Outside the mask, labels less one are no classes."""
    kept = y > 0
    return -o[kept].log_softmax(-1).gather(1, y[kept].unsqueeze(1) - 1).mean()


def divided(o, y):
    """Outside the mask, labels may be zero."""
    kept = y[:, 0] > 0
    return (o[kept].square().sum((1, 2)) / (6 // y[kept][:, 0])).mean()


def weighed_by_class(o, y):
    kept = y >= 0
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=o.dtype)
    return (weights[y[kept]] * F.cross_entropy(o[kept], y[kept], reduction="none")).mean()


def hard_ones(o, y):
    kept = y >= 0
    losses = F.cross_entropy(o[kept], y[kept], reduction="none")
    return losses[losses > 0.5].mean() + o[kept][y[kept] > 1].square().sum(1).mean()


def of_sequences(o, y):
    kept = (y >= 0).all(1) | (y[:, 1] > 0)
    return F.cross_entropy(o[kept].reshape(-1, 3), y[kept].view(-1))


OF_TOKENS = [by_class, by_class_in_order, of_classes_from_one, divided, weighed_by_class, hard_ones, of_sequences,
             picked, flattened, by_places, by_two_columns, with_class_weights, log_likelihood, of_each_then_picked,
             focal, two_kinds]


flattened.reduction = two_kinds.reduction = "sum"  # for the reference


def squared(o, y):
    kept = ~torch.isnan(y)
    return F.mse_loss(o[kept], y[kept])


def written_out(o, y):
    return ((o - y)[torch.isfinite(y)] ** 2).mean()


def selected(o, y):
    kept = y == y
    return (torch.masked_select(o, kept) - torch.masked_select(y, kept)).abs().pow(3).sum() / kept.sum()


def by_the_number(o, y):
    kept = ~y.isnan().any(1)
    return F.huber_loss(o[kept], y[kept], reduction="sum") / max(len(o[kept]), 1)


def rows_of_three(o, y):
    kept = ~y.isnan().any(1)
    return (o[kept] - y[kept]).view(-1).pow(2).mean()


def of_logarithms(o, y):
    """Numbers outside the mask have no logarithm."""
    kept = y > 0
    return ((o[kept].square() + 0.1).log() - y[kept].log()).square().mean()


def probabilities(o, y):
    kept = ~y.isnan().any(-1)
    return F.kl_div(o[kept].log_softmax(-1), y[kept].softmax(-1), reduction="batchmean")


def by_a_mask_written_twice(o, y):
    return F.mse_loss(o[~y.isnan()], y[~y.isnan()]) + F.l1_loss(torch.masked_select(o, y > 0), y[y > 0])


def in_a_column(o, y):
    kept = ~y[:, 1].isnan()
    return F.mse_loss(o[:, 1:2][kept].view(-1), y[:, 1][kept])


def flags(o, y):
    """Of truth values, whole numbers and numbers of the rows that are picked."""
    kept, above = ~y.isnan().any(1), y[:, 0] > 0
    both = above[kept] | ~above[kept]
    losses = (o[kept] ** 2).sum(1) * (~above[kept]) + o[kept].sum(1).masked_fill(above[kept], 0) ** 2
    return (losses * both).sum() / (len(o[kept]) / 3)


def column_by_column(o, y):
    return sum(F.mse_loss(o[~y[:, j].isnan(), j], y[~y[:, j].isnan(), j]) for j in range(3))


def by_numbers_of_lengths(o, y):
    kept = ~y.isnan().any(1)
    return o[kept].square().sum() * (len(y) / (len(y[kept]) + 1)) + (o[kept].sum(1) * (1 - len(o[kept]))).mean()


OF_NUMBERS = [column_by_column, by_a_mask_written_twice, in_a_column, flags, squared, written_out, selected,
              by_the_number, rows_of_three, of_logarithms, probabilities]


@few(4, "further cases of one kind")
@pytest.mark.parametrize("loss", OF_TOKENS + OF_NUMBERS)
def test_losses(loss):
    model, X, y = tokens() if loss in OF_TOKENS else numbers()
    result = hbp.compile(model, loss, SECOND, verify="full")(X, y)
    agree(result, model, loss, [X], y)
    close(result.loss, loss(model(X), y), "loss")


@pytest.mark.parametrize("backend", ["python", "torchscript"])
@given(data=st.data())
def test_other_masks_of_one_program(backend, data):
    """A program knows no number of rows: it serves masks of all kinds, none picked too, and batches of other sizes."""
    model, _, _ = tokens()
    compiled = hbp.compile(model, flattened, ["grad", "batch_grad"], backend=backend, verify=False,
                           example_inputs=tokens()[1:])
    samples = data.draw(st.integers(1, 4))
    labels = st.lists(st.sampled_from([-100, 0, 1, 2]), min_size=4 * samples, max_size=4 * samples)
    X, y = double(samples, 4, 2), torch.tensor(data.draw(labels)).view(samples, 4)
    agree(compiled(X, y), model, flattened, [X], y)


@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 0.5]])
def test_no_row_is_picked(weight):
    """The loss is NaN, the gradient is zero, as torch's are."""
    model, X, y = tokens()
    weight = None if weight is None else torch.tensor(weight, dtype=torch.float64)

    def loss(o, y):
        return F.cross_entropy(o[y >= 0], y[y >= 0], weight)

    none = torch.full_like(y, -100)
    for compiled in (hbp.compile(model, loss, ["grad", "batch_grad"], example_inputs=(X, y)),
                     hbp.compile(model, loss, ["grad", "batch_grad"], example_inputs=(X, none))):
        result = compiled(X, none)
        assert result.loss.isnan()
        assert not any(part.any() for held in (result.grad, result.batch_grad) for part in held.values())
        agree(compiled(X, y), model, loss, [X], y)


def test_a_data_set_in_which_a_batch_has_no_row():
    model, X, y = tokens()
    y[2:4] = -100
    compiled = hbp.compile(model, picked, ["grad"])
    batches = [(X[n : n + 2], y[n : n + 2]) for n in (0, 2, 4)]
    total = hbp.accumulate(compiled, batches, count=lambda batch: (batch[1] >= 0).sum(), progress=False)
    for name, slope in compiled(X, y).grad.items():
        close(total.grad[name], slope, name)


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

    with pytest.raises(hbp.HbpError, match=r"in the loss, .*test_picked_rows.py.*: how many rows a mask picks"):
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
