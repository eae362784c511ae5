"""Losses divided by numbers that they make of the batch: batches count what these say, and a sum of several is one loss
only where they keep their ratio."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from tests.selection import few

SIZES = (3, 5, 4)
Y = torch.tensor([0, 1, 2, -1, 0, -1, 1, -1, 0, 1, -1, 0])
WEIGHTS = torch.tensor([1.0, 3.0, 0.5]).double()


def squares(o):
    return o.square().sum(1)


def mean_of_picked(o, y):
    return o[y >= 0].square().mean()


def over_a_mask(o, y):
    return (squares(o) * (y >= 0)).sum() / (y >= 0).sum()


def over_nearly_a_mask(o, y):
    return (squares(o) * (y >= 0)).sum() / ((y >= 0).sum() + 1e-9)


def over_a_mask_or_one(o, y):
    return (squares(o) * (y >= 0)).sum() / (y >= 0).sum().clamp(min=1)


def over_a_mask_or_five(o, y):
    return (squares(o) * (y >= 0)).sum() / (y >= 0).sum().clamp(min=5)


def mean_times_size(o, y):
    return (squares(o) * (y >= 0)).mean() * len(y) / (y >= 0).sum()


def over_weights(o, y):
    weight = 1.0 + y.clamp(min=0)
    return (squares(o) * weight).sum() / weight.sum()


def two_over_one_mask(o, y):
    return mean_of_picked(o, y) + 3 * (o.exp()[:, 0] * (y >= 0)).sum() / (y >= 0).sum()


def two_over_two_masks(o, y):
    return mean_of_picked(o, y) + o[y == 0].exp().mean()


def two_over_all_and_some(o, y):
    return mean_of_picked(o, y) + o.exp().mean()


def two_with_class_weights(o, y):
    return F.cross_entropy(o, y.clamp(min=0), WEIGHTS) + F.cross_entropy(2 * o, y.clamp(min=0), WEIGHTS)


def one_with_class_weights(o, y):
    return F.cross_entropy(o, y.clamp(min=0), WEIGHTS) + F.cross_entropy(2 * o, y.clamp(min=0))


def over_outputs_and_all(o, y):
    chosen = (o[:, 0].detach() > 0).double()
    return (squares(o) * chosen).sum() / chosen.sum() + o.exp().mean()


ALPHA = torch.tensor(0.3).double()


class Weighing(nn.Module):
    """Two parts of one loss, by a parameter and a buffer of its own."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([0.2, -0.1]).double())
        self.register_buffer("alpha", torch.tensor(0.7).double())

    def forward(self, o, y):
        first = (-self.log_scale[0]).exp() * F.cross_entropy(o, y.clamp(min=0)) + self.log_scale[0]
        return first + (1 - self.alpha) * squares(o).mean()


def times_a_tensor(o, y):
    return F.cross_entropy(o, y.clamp(min=0)) * ALPHA


def over_a_tensor(o, y):
    return F.cross_entropy(o, y.clamp(min=0)) / (2 * ALPHA.square()) + ALPHA.log()


def less_a_tensor_times(o, y):
    return F.cross_entropy(o, y.clamp(min=0)) - ALPHA * (o.softmax(1) * o.log_softmax(1)).sum(1).mean()


def sum_times_a_tensor(o, y):
    return ALPHA * squares(o).sum() / len(y)


def a_tensor_times_the_mean_over_a_mask(o, y):
    return over_a_mask(o, y) * ALPHA


def zero_times_a_sum(o, y):
    return o.abs().sum() * 0 + F.cross_entropy(o, y.clamp(min=0))


def zero_times_another_mean(o, y):
    return 0.0 * o[y == 0].exp().mean() + mean_of_picked(o, y)


def beginning_with_zero(o, y):
    loss, chosen = o.sum() * 0, y >= 0
    if chosen.any():
        loss = loss + F.cross_entropy(o[chosen], y[chosen])
    return loss


def model():
    torch.manual_seed(1)
    return nn.Linear(4, 3).double()


def data(labels=Y):
    torch.manual_seed(0)
    X = torch.randn(len(labels), 4).double()
    return list(zip(X.split(SIZES), labels.split(SIZES), strict=True)), (X, labels)


def total_and_right(loss, labels=Y, **options):
    loader, (X, y) = data(labels)
    found = hbp.accumulate(hbp.compile(model(), loss, ["grad", "diag_ggn"]), loader, progress=False, **options)
    whole = model()
    value = loss(whole(X), y)
    value.backward()
    right = hbp.compile(model(), loss, ["diag_ggn"])(X, y).diag_ggn["weight"]
    return (found.loss, found.grad["weight"], found.diag_ggn["weight"]), (value.detach(), whole.weight.grad, right)


@few(2, "further cases of one kind")
@pytest.mark.parametrize("loss", [mean_of_picked, over_a_mask, over_nearly_a_mask, over_a_mask_or_one, mean_times_size,
                                  over_weights, two_over_one_mask])
def test_divisors_made_of_the_batch_say_what_it_counts(loss):
    found, right = total_and_right(loss)
    torch.testing.assert_close(found, right)


@few(3, "further spellings")
@pytest.mark.parametrize("loss", [Weighing(), times_a_tensor, beginning_with_zero, over_a_tensor, less_a_tensor_times,
                                  sum_times_a_tensor, a_tensor_times_the_mean_over_a_mask, zero_times_a_sum,
                                  zero_times_another_mean])
def test_constants_beside_the_batchs_numbers(loss):
    found, right = total_and_right(loss)
    torch.testing.assert_close(found, right)


def valid(batch):
    return (batch[1] >= 0).sum()


@pytest.mark.parametrize("loss", [mean_of_picked, two_over_one_mask])
def test_a_count_that_says_the_same_is_right_too(loss):
    found, right = total_and_right(loss, count=valid)
    torch.testing.assert_close(found, right)


def test_a_count_that_says_something_else_is_refused():
    with pytest.raises(hbp.InputError, match=r"count gave 5 for a batch whose loss is a mean over 2 terms, but 3 for "
                                             r"the first, whose loss is one over 3\. .* leave count out"):
        total_and_right(over_a_mask, count=lambda batch: len(batch[1]))


def test_a_divisor_that_does_not_add_up_asks_for_count_and_is_compared_with_it():
    none_in_the_first = torch.cat([torch.full([3], -1), Y[3:]])
    with pytest.raises(hbp.InputError, match="divided by a number that depends on the batch; pass count="):
        total_and_right(over_a_mask_or_one, none_in_the_first)
    found, right = total_and_right(over_a_mask_or_one, none_in_the_first, count=valid)
    torch.testing.assert_close(found, right)
    with pytest.raises(hbp.InputError, match="count gave 2 for a batch whose loss is a mean over 5 terms"):
        total_and_right(over_a_mask_or_five, count=valid)


@pytest.mark.parametrize("options", [{}, {"count": valid}])
@pytest.mark.parametrize(("loss", "terms"), [(two_over_two_masks, r"6 and 3\) than in the first \(9 and 3"),
                                             (two_over_all_and_some, r"6 and 15\) than in the first \(9 and 9")])
def test_means_over_other_terms_are_not_one(loss, terms, options):
    with pytest.raises(hbp.InputError, match=rf"batch 1 .* ratio is another in this batch \({terms}\).* one by one"):
        total_and_right(loss, **options)


@pytest.mark.parametrize("loss", [one_with_class_weights, over_outputs_and_all])
def test_a_count_of_parts_of_which_one_is_not_known_is_refused(loss):
    with pytest.raises(hbp.InputError, match="a sum of means, and over how many terms these go is not known"):
        total_and_right(loss, count=valid)


def test_two_parts_over_the_same_unknown_terms_are_one():
    found, right = total_and_right(two_with_class_weights, count=lambda batch: WEIGHTS[batch[1].clamp(min=0)].sum())
    torch.testing.assert_close(found, right)


def over_signed_weights(o, y):
    weight = y - 0.5
    return (squares(o) * weight).sum() / weight.sum()


def test_weights_that_may_cancel():
    """Where the divisors of all batches are above zero they add up; of one that is not, nothing does."""
    found, right = total_and_right(over_signed_weights, torch.tensor([1, 2, 0, 2, 1, 1, 0, 1, 2, 0, 2, 1]))
    torch.testing.assert_close(found[:2], right[:2])
    negative = torch.tensor([0, 0, 0, 2, 1, 1, 0, 1, 2, 0, 2, 1])
    for options in ({}, {"count": lambda batch: len(batch[1])}):
        with pytest.raises(hbp.InputError, match=r"batch 0 .* is divided by -1\.5 in this batch, .* above zero"):
            total_and_right(over_signed_weights, negative, **options)


@pytest.mark.parametrize("loss", [
    lambda o, y: F.cross_entropy(o, y.clamp(min=0)) + o.square().sum(),
    lambda o, y: F.cross_entropy(o, y.clamp(min=0)) + 0.1 * F.cross_entropy(o, y.clamp(min=0), reduction="sum"),
    lambda o, y: torch.stack([F.cross_entropy(o, y.clamp(min=0)), o.square().sum()]).sum(),
], ids=["two kinds", "one in both", "stacked"])
@pytest.mark.parametrize("count", [None, len])
def test_a_mean_and_a_sum_are_no_total(loss, count):
    with pytest.raises(hbp.UnsupportedOpError, match="one part of the loss is a mean over the samples and another one"):
        hbp.accumulate(hbp.compile(model(), loss, ["grad"]), data()[0], count=count, progress=False)


def test_terms_of_both_kinds_laid_after_one_another():
    def loss(o, y):
        return torch.cat([F.cross_entropy(o, y.clamp(min=0), reduction="none"), squares(o)]).mean()

    own, (loader, (X, y)) = model(), data()
    total = hbp.accumulate(hbp.compile(own, loss, ["grad"]), loader, progress=False)
    loss(own(X), y).backward()
    for name, parameter in own.named_parameters():
        torch.testing.assert_close(total.grad[name], parameter.grad)


@pytest.mark.parametrize("loss", [lambda o, y: (F.cross_entropy(o, y.clamp(min=0)), {"accuracy": 0.5}),
                                  lambda o, y: {"loss": F.cross_entropy(o, y.clamp(min=0))}])
def test_a_loss_with_metrics_is_told_what_to_pass(loss):
    with pytest.raises(hbp.HbpError, match=r"returned (tuple|dict).*lambda output, target: loss\(output, target\)"):
        hbp.compile(model(), loss, ["grad"])(*data()[1])
