"""Conditions on rows in the forms in which people write them: of the other rows, nested, beside writes to parts, with
weights, by a number that .item() makes. Right at every batch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from tests.agreement import agree
from tests.selection import few

REFUSED = r"control flow depends on the values(.|\n)*test_known_masks\.py:\d+: .*where the mask picks nothing"
WEIGHTS = torch.tensor([1.0, 0.25, 3.0]).double()


LABELS = [[1, 0, 2, 1], [0, 0, 0, 0], [0, 1, 0, 0], [0, 1], [2], [0, 0]]
"""Of batches in which some masks pick rows, and some none."""


def check(loss):
    """It is finite at each batch, and all is right."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    compiled = hbp.compile(model, loss, ["grad", "diag_h"])
    for labels in LABELS:
        x, y = torch.randn(len(labels), 3, dtype=torch.float64), torch.tensor(labels)
        result = compiled(x, y)
        agree(result, model, loss, [x], y)
        assert result.loss.isfinite()


class Model(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.first, self.second, self.body = nn.Linear(3, 3), nn.Linear(3, 3), body

    def forward(self, x):
        return self.body(self, self.first(x).tanh().clone(), x[:, 0] > 0)


def in_a_column(self, h, m):
    if m.any():
        h[m, 1] = self.second(h[m])[:, 1]
    return h


def in_a_view(self, h, m):
    if m.any():
        h[:, :2][m] = self.second(h[m])[:, :2]
    return h


def blended(self, h, m):
    if m.any():
        h = h * (~m)[:, None] + self.second(h) * m[:, None]
    return h


def where_not(self, h, m):
    return torch.where(~m[:, None], h, self.second(h)) if m.any() else h


def of_the_others(self, h, m):
    if (~m).any():
        h = torch.where(m[:, None], h, self.second(h))
    return h


def not_all(self, h, m):
    if not m.all():
        h[~m] = self.second(h[~m])
    return h


def all_of_them(self, h, m):
    if m.all():
        return h
    return h.index_put((~m,), self.second(h[~m]))


def either_mask(self, h, m):
    chosen = (h > 0.2) | m[:, None]
    return torch.where(chosen | (chosen & m[:, None]), self.second(h), h) if chosen.any() else h


def along_an_axis(self, h, m):
    best = h.argmax(-1, keepdim=True) == torch.arange(3)
    best = best & m[:, None]
    if best.any():
        rows = best.any(-1)
        h[rows] = self.second(h[rows])
    return h


def by_a_number(self, h, m):
    number = m.sum().item()
    if number > 0:
        h[m] = self.second(h[m])
    return h


BODIES = [in_a_column, in_a_view, blended, where_not, of_the_others, not_all, all_of_them, either_mask, along_an_axis,
          by_a_number]


@few(4, "further cases of one kind")
@pytest.mark.parametrize("body", BODIES)
def test_models(body):
    torch.manual_seed(0)
    model = Model(body).double()
    compiled = hbp.compile(model, quantities=["grad", "batch_grad", "diag_ggn", "diag_h"])
    for signs in ([1, -1, 1, -1, -1], [-1, -1, -1], [1, 1], [-1], [1, -1, -1, -1]):
        x, y = torch.randn(len(signs), 3, dtype=torch.float64), torch.randint(3, (len(signs),))
        x[:, 0] = x[:, 0].abs() * torch.tensor(signs)
        agree(compiled(x, y), model, nn.CrossEntropyLoss(), [x], y)


def doubled_unless_all(self, h, m):
    return h if m.all() else 2 * h


def another_column(self, h, m):
    if m.any():
        h[m, 1] = self.second(h[m])[:, 1]
        h[:, 2] = h[:, 1]
    return h


def another_mask_in_the_product(self, h, m):
    other = h[:, 1] > 0
    return h * (~other)[:, None] + self.second(h) * m[:, None] if m.any() else h


def number_beside(self, h, m):
    number = m.sum().item()
    if number > 0:
        h[m] = self.second(h[m])
        h = h + 1 / (1 + number)
    return h


def number_of_another(self, h, m):
    there, here = (h[:, 1] > 0).sum().item(), (h[:, 2] > 0).sum().item()
    return h * there if m.any() else h * here


@pytest.mark.parametrize("body", [doubled_unless_all, another_column, another_mask_in_the_product, number_beside,
                                  number_of_another])
def test_models_that_choose(body):
    model, x, y = Model(body).double(), torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    with pytest.raises(hbp.CompileError, match=REFUSED):
        hbp.compile(model, quantities=["grad"], verify=False)(x, y)


def stacked(o, y):
    parts = [0.1 * o.square().mean()]
    parts += [F.cross_entropy(o[y == k], y[y == k], reduction="sum") for k in (1, 2) if (y == k).any()]
    return torch.stack(parts).sum()


def weighted_rows(o, y):
    total, m = 0.1 * o.square().mean(), y > 0
    return total + F.cross_entropy(o[m], y[m], weight=WEIGHTS) if m.any() else total


def weighted_rows_with_some_ignored(o, y):
    total, m = 0.1 * o.square().mean(), y > 0
    return total + F.cross_entropy(o[m], y[m], weight=WEIGHTS, ignore_index=5) if m.any() else total


def over_weights(o, y):
    total, m, w = 0.1 * o.square().mean(), y > 0, WEIGHTS[y]
    return total + (F.cross_entropy(o, y, reduction="none") * w * m).sum() / (w * m).sum() if m.any() else total


def over_two_masks(o, y):
    total, m, some = 0.1 * o.square().mean(), y > 0, o[:, 0].detach() > 0
    if m.any() and some.any():
        both = m & some
        if both.any():
            total = total + (o[:, 1].square() * m * both).sum() / (WEIGHTS[y] * m * both).sum()
    return total


def nested(o, y):
    each, some = F.cross_entropy(o, y, reduction="none"), y > 0
    total = 0.1 * o.square().mean()
    if some.any():
        most = some & (y > 1)
        if most.any():
            total = total + each[most].mean()
    return total


def of_both_kinds(o, y):
    total, m = 0.1 * o.square().mean(), y > 0
    if m.any():
        total = total + o[m].mean()
    if (~m).any():
        total = total - o[~m].exp().mean()
    return total


def by_item(o, y):
    total = 0.1 * o.square().mean()
    return total + F.cross_entropy(o[y > 0], y[y > 0]) if (y > 0).sum().item() > 0 else total


@few(3, "further cases of one kind")
@pytest.mark.parametrize("loss", [stacked, weighted_rows, weighted_rows_with_some_ignored, over_weights,
                                  over_two_masks, nested, of_both_kinds, by_item])
def test_losses(loss):
    check(loss)


def mean_of_stacked(o, y):
    parts = [0.1 * o.square().mean()]
    parts += [F.cross_entropy(o[y == k], y[y == k], reduction="sum") for k in (1, 2) if (y == k).any()]
    return torch.stack(parts).mean()


def over_other_weights(o, y):
    total, m, w = 0.1 * o.square().mean(), y > 0, y > 1
    return total + (F.cross_entropy(o, y, reduction="none") * m).sum() / (w * m).sum() if w.any() else total


def nested_without_asking(o, y):
    total, some = 0.1 * o.square().mean(), y > 0
    return total + o[some & (y > 1)].square().mean() if some.any() else total


@pytest.mark.parametrize("loss", [mean_of_stacked, over_other_weights, nested_without_asking])
def test_losses_that_choose(loss):
    model, x = nn.Linear(3, 3).double(), torch.randn(4, 3, dtype=torch.float64)
    with pytest.raises(hbp.CompileError, match=REFUSED):
        hbp.compile(model, loss, ["grad"], verify=False)(x, torch.tensor([1, 0, 2, 1]))


class Constants(nn.Module):
    """Equal numbers, until they are set."""

    def __init__(self):
        super().__init__()
        self.rare, self.usual = torch.ones(3).double(), torch.ones(3).double()

    def forward(self, o, y):
        if (y > 0).any():
            return F.cross_entropy(o, y, self.rare, reduction="sum") + o[y > 0].square().sum()
        return F.cross_entropy(o, y, self.usual, reduction="sum")


def test_constants_are_not_one_by_their_numbers():
    model, x = nn.Linear(3, 3).double(), torch.randn(4, 3, dtype=torch.float64)
    with pytest.raises(hbp.CompileError, match=REFUSED):
        hbp.compile(model, Constants(), ["grad"])(x, torch.tensor([1, 0, 2, 1]))


def from_zero(o, y):
    loss = 0.0
    for k in range(3):
        if (y == k).any():
            loss = loss + F.cross_entropy(o[y == k], y[y == k])
    return loss


def list_of_some(o, y):
    return torch.stack([F.cross_entropy(o[y == k], y[y == k]) for k in range(3) if (y == k).any()]).sum()


def at_each_place(o, y):
    each = -o.log_softmax(1)[torch.arange(len(y)), y]
    return each.sum() + each[y > 1].square().sum() if (y > 1).any() else each.sum()


def beside_zeros(o, y):
    loss = F.mse_loss(o, torch.zeros_like(o)) + F.mse_loss(o, o.new_ones(len(o), 1).expand(-1, 3) * torch.tensor(0.5))
    return loss + o[y > 1].square().sum() if (y > 1).any() else loss


@pytest.mark.parametrize("loss", [from_zero, list_of_some, at_each_place, beside_zeros])
def test_losses_that_begin_at_nothing_and_sizes_beside(loss):
    check(loss)


def of_few_classes(o, y):
    total, present = o.square().mean(), 0
    for k in range(5):
        if (y == k).any():
            total, present = total + F.cross_entropy(o[y == k], y[y == k]), present + 1
    if present < 2:
        raise ValueError("a batch needs two classes")
    return total + o.abs().mean() if present <= 3 else total


def test_each_number_of_many_masks_is_tried():
    model, x = nn.Linear(3, 5).double(), torch.randn(6, 3, dtype=torch.float64)
    with pytest.raises(hbp.CompileError, match=REFUSED):
        hbp.compile(model, of_few_classes, ["grad"])(x, torch.tensor([0, 1, 2, 3, 4, 0]))


def over_picked_weights(o, y):
    total, m, w = F.cross_entropy(o, y), y > 1, WEIGHTS[y]
    if m.any():
        total = total + (F.cross_entropy(o[m], y[m], reduction="none") * w[m]).sum() / w[m].sum()
    return total


def zero_tensor(o, y):
    m = y > 1
    return F.cross_entropy(o, y) + (F.cross_entropy(o[m], y[m]) if m.any() else torch.tensor(0.0))


def over_a_number(o, y):
    number = (y > 1).sum().item()
    if number > 0:
        return F.cross_entropy(o, y) + F.cross_entropy(o[y > 1], y[y > 1], reduction="sum") / number
    return F.cross_entropy(o, y)


def of_either(o, y):
    one, other = y == 1, y == 2
    return F.cross_entropy(o, y) + (o[one | other].square().mean() if one.any() or other.any() else 0.0)


def one_within_another(o, y):
    total, m = F.cross_entropy(o, y), y > 0
    if m.any():
        total = total + o[m].square().mean()
    if (m & (y > 1)).any():
        total = total + o[m & (y > 1)].exp().mean()
    return total


def side_by_side(o, y):
    parts, m = [], y > 0
    if m.any():
        parts.append(o[m].square().sum())
    if (~m).any():
        parts.append(o[~m].exp().sum())
    return torch.stack(parts).sum()


@few(3, "further cases of one kind")
@pytest.mark.parametrize("loss", [over_picked_weights, zero_tensor, over_a_number, of_either, one_within_another,
                                  side_by_side])
def test_losses_as_people_write_them(loss):
    check(loss)


def test_a_number_that_item_makes_of_a_count():
    """Without a condition, it is the count."""
    def loss(o, y):
        return F.cross_entropy(o, y, reduction="sum") / (y > 0).sum().item()

    torch.manual_seed(0)
    model = nn.Linear(3, 3).double()
    compiled = hbp.compile(model, loss, ["grad", "diag_h"])
    for y in (torch.tensor([1, 0, 2, 1]), torch.tensor([0, 1])):
        x = torch.randn(len(y), 3, dtype=torch.float64)
        agree(compiled(x, y), model, loss, [x], y)


def one_number_for_a_row(self, h, m):
    out = h.clone()
    out[m] = self.second(h[m])[:, :1]
    return out


def added_to_a_row(self, h, m):
    return h.index_put((m,), self.second(h[m])[:, 1:2].exp(), accumulate=True)


@pytest.mark.parametrize("body", [one_number_for_a_row, added_to_a_row])
def test_what_is_put_is_broadcast(body):
    torch.manual_seed(0)
    model = Model(body).double()
    compiled = hbp.compile(model, quantities=["grad", "batch_grad", "diag_ggn", "diag_h"])
    for signs in ([1, -1, 1, -1, -1], [-1, -1, -1], [1]):
        x, y = torch.randn(len(signs), 3, dtype=torch.float64), torch.randint(3, (len(signs),))
        x[:, 0] = x[:, 0].abs() * torch.tensor(signs)
        agree(compiled(x, y), model, nn.CrossEntropyLoss(), [x], y)


def returned_early(o, y):
    if (y > 0).any():
        return o.square().mean() + o[y > 0].square().mean()
    return 0.0


def another_number(o, y):
    return o[y > 0].square().mean() if (y > 0).any() else 5.0


@pytest.mark.parametrize("loss", [returned_early, another_number])
def test_numbers_of_pythons_are_no_zero_by_themselves(loss):
    model, x = nn.Linear(3, 3).double(), torch.randn(4, 3, dtype=torch.float64)
    with pytest.raises(hbp.CompileError, match=REFUSED):
        hbp.compile(model, loss, ["grad"], verify=False)(x, torch.tensor([1, 0, 2, 1]))
