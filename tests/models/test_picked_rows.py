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
