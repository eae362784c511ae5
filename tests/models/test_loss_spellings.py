"""A loss is what it does: spellings of one mean or sum give one result; losses inside losses; targets that the model
makes. In float64 against brute force."""

import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.quantities import BATCH, QUANTITIES
from hbpcompiler.reference import reference
from tests.agreement import close
from tests.models.test_outputs import Summed
from tests.selection import few, slow

torch.manual_seed(0)
SCALES = ["grad", "batch_grad", "second_moment", "variance", "diag_ggn"]
X, LABELS = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 2])
VALUES, WEIGHTS = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
MASK = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 0, 1], [1, 0, 0]]).bool()
CLASSES = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
TARGET = {"y": LABELS, "z": VALUES, "w": WEIGHTS, "m": MASK}


def check(loss, model, target, quantities, *, scaled=True):
    """scaled: whether l_n has a scale, so that the losses make up the whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hbp.IndefiniteCurvatureWarning)
        result = hbp.compile(model, loss, [*(["batch_loss"] if scaled else []), *quantities])(X, target)
    if scaled:
        losses = result.batch_loss
        total = losses.sum() if getattr(loss, "reduction", "mean") == "sum" else losses.mean()
        torch.testing.assert_close(total, result.loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.loss, loss(model(X), target).detach())
    for quantity in quantities:
        expected = reference(model, loss, (X,), target, quantity)
        scales = reference(model, loss, (X,), target, "second_moment") if quantity == "variance" else expected
        for name, value in expected.items():
            close(result[quantity][name], value, f"{quantity} of {name}", scales[name])


def plain():
    torch.manual_seed(1)
    return nn.Linear(3, 3).double()


def squares(output, target):
    return (output - target["z"]).square()


def summed(output, target):
    return F.cross_entropy(output, target["y"], reduction="sum")


def number(output):
    return output.shape[0]


MEANS = {
    "sum / N": lambda o, t: summed(o, t) / number(o),
    "1 / N": lambda o, t: (1 / number(o)) * summed(o, t),
    "numel": lambda o, t: squares(o, t).sum() / o.numel(),
    "inside": lambda o, t: (squares(o, t) / number(o)).sum(),
    "batchmean": lambda o, t: F.kl_div(o.log_softmax(1), t["z"].softmax(1), reduction="batchmean"),
    "sum and mean": lambda o, t: F.cross_entropy(o, t["y"]) + squares(o, t).sum() / number(o),
    "axes": lambda o, t: squares(o, t).sum(1).mean(0) + squares(o, t).mean((0, 1)),
    "axis of a sum": lambda o, t: squares(o, t).sum(-1).sum(-1) / number(o),
    "samples before the rest": lambda o, t: (
        squares(o, t).mean(0).sum() + squares(o, t).sum(0).mean() / number(o) + (squares(o, t).mean(0) * CLASSES).mean()
        + squares(o, t).view(-1, 3, 1).mean((0, 2)) @ CLASSES + (squares(o, t).mean(0) / CLASSES / 2).sum()),
    "stacked": lambda o, t: (
        torch.stack([squares(o, t).mean(), F.cross_entropy(o, t["y"])]).sum()
        + torch.stack([F.mse_loss(o[:, i], t["z"][:, i]) for i in range(3)]).mean()
        + (torch.stack([each.mean() for each in squares(o, t).unbind(1)]) * CLASSES / 2).sum()
        + torch.stack([F.cross_entropy(o, t["y"])]).sum()
        + torch.cat([F.cross_entropy(o, t["y"])[None], torch.stack([squares(o, t).mean(), o.cos().mean()])]).mean()
        + F.cross_entropy(o, t["y"])[None].squeeze() + torch.stack([squares(o, t).mean(), o.mean()])[1]),
    "end to end": lambda o, t: (
        torch.cat([F.cross_entropy(o, t["y"], reduction="none"), squares(o, t).flatten()]).mean()
        + (torch.cat([squares(o, t).sum(1), squares(o, t).flatten(), o[:, 0]]) / 3 * 2).mean()),
    "N - 1": lambda o, t: squares(o, t).sum() / (number(o) - 1),
    "counted": lambda o, t: summed(o, t) / (t["y"] >= 0).sum(),
    "mask": lambda o, t: (squares(o, t) * t["m"]).sum() / t["m"].sum(),
    "mask, at least one": lambda o, t: (squares(o, t) * t["m"]).sum() / t["m"].sum().clamp(min=1),
    "mask, and a little": lambda o, t: (squares(o, t) * t["m"]).sum() / (t["m"].sum() + 1e-8),
    "weights over their sum": lambda o, t: (squares(o, t).sum(1) * (t["w"] / t["w"].sum())).sum(),
    "softmax of weights": lambda o, t: (squares(o, t).sum(1) * torch.softmax(t["w"], 0)).sum(),
    "einsum of everything": lambda o, t: torch.einsum("nc,nc->", o, o - t["z"]) / number(o),
    "square of a norm": lambda o, t: ((o - t["z"]).norm() ** 2 + torch.linalg.norm(o - t["z"]).square()) / number(o),
    "tensordot": lambda o, t: torch.tensordot(o, o - t["z"], 2) / number(o),
    "inner": lambda o, t: torch.inner(o.flatten(), (o - t["z"]).flatten()) / number(o),
    "shown as a number": lambda o, t: squares(o, t).mean().view(()).reshape(()).squeeze().clone(),
    "of one number": lambda o, t: (F.cross_entropy(o, t["y"]).mean() + squares(o, t).mean().sum()
                                   + squares(o, t).mean().mean(dim=()).sum(dtype=o.dtype)),
    "hinges": lambda o, t: (
        F.hinge_embedding_loss(o, torch.where(t["m"], 1, -1)) + F.hinge_embedding_loss(
            o, torch.where(t["m"], 1, -1), margin=0.3, reduction="none").mean()),
    "einsum without an arrow": lambda o, t: torch.einsum("nc, nc", o, o) / number(o),
    "einsum with weights": lambda o, t: torch.einsum("n,nc->c", t["w"] / t["w"].sum(), squares(o, t)).sum(),
    "ones @ losses": lambda o, t: torch.ones(number(o), dtype=o.dtype) @ squares(o, t).sum(1) / number(o),
    "losses @ weights": lambda o, t: squares(o, t).sum(1) @ t["w"] / t["w"].sum(),
    "each over the mean weight": lambda o, t: (squares(o, t).sum(1) * t["w"]).mean() / t["w"].mean(),
}
SUMS = {
    "mean * N": lambda o, t: F.cross_entropy(o, t["y"]) * number(o),
    "stacked": lambda o, t: (
        torch.stack([each.sum() for each in squares(o, t).unbind(1)]) @ CLASSES + squares(o, t).sum(0).mean()),
    "end to end": lambda o, t: torch.cat([F.cross_entropy(o, t["y"], reduction="none"), squares(o, t).flatten()]).sum(),
    "of one number": lambda o, t: squares(o, t).sum().sum() + summed(o, t).mean(),
    "hinges": lambda o, t: F.hinge_embedding_loss(o, torch.where(t["m"], 1.0, -1.0), margin=0.5, reduction="sum"),
    "sum + mean * N": lambda o, t: summed(o, t) + squares(o, t).mean() * number(o),
    "einsum of everything": lambda o, t: torch.einsum("nc,nc->", squares(o, t), t["m"].double()),
    "square of a norm": lambda o, t: torch.linalg.vector_norm(o - t["z"], dim=(0, 1)).square(),
    "dot": lambda o, t: torch.dot(squares(o, t).mean(1), t["w"]) + torch.vdot(o[:, 0], o[:, 1]),
    "over a mean": lambda o, t: (squares(o, t) * t["m"]).sum() / t["m"].double().mean(),
}


@few(2, "the same comparison of two losses")
@pytest.mark.parametrize(("name", "kind"), [*[(name, "mean") for name in MEANS], *[(name, "sum") for name in SUMS]])
def test_what_stays_is_a_mean_and_what_doubles_is_a_sum(name, kind):
    check(MEANS[name] if kind == "mean" else Summed(SUMS[name]), plain(), TARGET, SCALES[2:4])


WHOLE = {"y": LABELS.to(torch.uint8), "ignored": torch.tensor([0, 255, 1, 2], dtype=torch.uint8), "mask": MASK,
         "counts": torch.tensor([[0, 1, 7], [2, 0, 1], [3, 1, 4], [1, 2, 0]], dtype=torch.int16)}


@slow("many losses in one")
def test_targets_of_whole_numbers():
    """As torch takes them: bytes for classes (masks of images, 255 where nothing counts), numbers for numbers."""
    def loss(output, target):
        return (F.cross_entropy(output, target["y"], label_smoothing=0.1)
                + F.cross_entropy(output, target["ignored"], ignore_index=255)
                + F.cross_entropy(output, target["y"], reduction="none").square().mean()
                + F.nll_loss(output.log_softmax(1), target["ignored"], ignore_index=255)
                + F.mse_loss(output, target["counts"]) + F.l1_loss(output, target["counts"])
                + F.smooth_l1_loss(output, target["counts"].long()) + F.poisson_nll_loss(output, target["counts"]))

    def of_truth_values(output, target):  # torch has no second derivative of these
        return F.mse_loss(output, target["mask"]) + F.smooth_l1_loss(output, target["mask"])

    check(loss, plain(), WHOLE, ["variance", "diag_h"])
    model = plain()
    found = hbp.compile(model, of_truth_values, ["grad", "diag_h"])(X, WHOLE)
    numbers = {"mask": MASK.double()}
    for name, value in reference(model, of_truth_values, (X,), numbers, "grad").items():
        close(found.grad[name], value, f"grad of {name}")
    for name, value in reference(model, of_truth_values, (X,), numbers, "diag_h").items():
        close(found.diag_h[name], value, f"diag_h of {name}")
    wrong = {**WHOLE, "y": torch.tensor([0, 255, 1, 2], dtype=torch.uint8)}
    with pytest.raises(hbp.InputError, match="255, but class indices lie between 0 and 2"):
        hbp.compile(plain(), lambda o, t: F.cross_entropy(o, t["y"]), ["grad"])(X, wrong)
    signs = MASK.to(torch.uint8)
    with pytest.raises(hbp.HbpError, match=r"no negative numbers.* give \(2 \* y.to\(torch.float64\) - 1\)"):
        hbp.compile(plain(), nn.SoftMarginLoss(), ["grad"])(X, signs)
    check(nn.SoftMarginLoss(), plain(), 2 * signs.long() - 1, ["variance", "diag_h"])


def test_a_mask_by_a_label_that_is_no_class():
    """As self-training has it: unlabelled samples are marked, and have a loss of their own."""
    def loss(output, target):
        known = target["marked"] != -100
        return F.cross_entropy(output[known], target["marked"][known]) + 0.5 * output[~known].square().mean()

    check(loss, plain(), {**TARGET, "marked": torch.tensor([2, -100, 1, -100])}, SCALES[2:4])


def test_a_mean_over_a_mask_behind_operations_that_are_fused():
    """The growth of a loss looks through the whole graph, of which torch knows not every operation."""
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.last((2 * self.first(x) + 1).tanh().exp())

    def loss(output, target):
        known = (target["y"] != -100).double()
        return (F.cross_entropy(output, target["y"], reduction="none") * known).sum() / known.sum()

    check(loss, Fused().double(), TARGET, SCALES)


def test_neither_a_mean_nor_a_sum():
    def loss(output, target):
        return summed(output, target) / number(output) ** 0.5

    check(loss, plain(), TARGET, ["grad", "batch_grad", "diag_h"], scaled=False)
    words = r"neither a mean .* no scale for variance:(.|\n)*aten.div in"
    with pytest.raises(hbp.UnsupportedOpError, match=words) as found:
        hbp.compile(plain(), loss, ["grad", "variance"])(X, TARGET)
    *_, advice = str(found.value).splitlines()
    needing = re.search(r"that need the scale are (.*); the others do not depend on it\.$", advice)
    assert needing is not None
    names = needing[1].split(", ")
    assert {"batch_loss", "second_moment", "variance", "norms", "kfac_emp"} <= set(names)
    hbp.compile(plain(), loss, [name for name in QUANTITIES if name not in names and name != "kfra"
                                and not QUANTITIES[name].arguments])


FAMILIES = {
    "cross-entropy": [
        lambda o, t: F.cross_entropy(o, t["y"]),
        lambda o, t: summed(o, t) / number(o),
        lambda o, t: F.cross_entropy(o, t["y"], reduction="none").mean(),
        lambda o, t: F.nll_loss(o.log_softmax(1), t["y"], reduction="sum") / t["y"].numel(),
        lambda o, t: -(o.log_softmax(1) * F.one_hot(t["y"], 3)).sum() / number(o),
        lambda o, t: (o.logsumexp(1) - o.gather(1, t["y"].unsqueeze(1)).squeeze(1)).mean(),
    ],
    "squares": [
        lambda o, t: F.mse_loss(o, t["z"]),
        lambda o, t: F.mse_loss(o, t["z"], reduction="sum") / o.numel(),
        lambda o, t: squares(o, t).mean(1).sum() / number(o),
        lambda o, t: F.mse_loss(t["z"], o),
        lambda o, t: F.mse_loss(o, t["z"], reduction="none").sum(1).mean() / 3,
    ],
}
SAMPLED = ("diag_ggn_mc", "diag_h_mc", "diag_h_mc_all", "sqrt_ggn", "sqrt_ggn_mc", "block", "kfac", "kfac_reduce",
           "ekfac", "diag_h_split", "gram", "gram_mc", "cross", "cross_mc")
"""Drawn, or with columns that another spelling has more of."""


@given(st.data())
def test_spellings_of_one_loss_give_one_result(data):
    first, second = data.draw(st.permutations(FAMILIES[data.draw(st.sampled_from(sorted(FAMILIES)))]))[:2]
    quantities = [name for name, quantity in QUANTITIES.items()
                  if name not in SAMPLED and set(quantity.arguments) <= {"max_norm"}]
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hbp.IndefiniteCurvatureWarning)
        one, other = (hbp.compile(model, loss, quantities)(X, TARGET, max_norm=1.0) for loss in (first, second))
    torch.testing.assert_close(one.batch_loss, other.batch_loss, rtol=1e-8, atol=1e-10)
    for quantity in [name for name in quantities if QUANTITIES[name].per != BATCH]:
        for name, value in one[quantity].items():
            for ours, theirs in zip(value if isinstance(value, tuple) else [value],
                                    other[quantity][name] if isinstance(value, tuple) else [other[quantity][name]],
                                    strict=True):
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10, msg=f"{quantity} of {name}")


# -- losses inside losses --------------------------------------------------------------------------------------------


def focal(output, target):
    each = F.cross_entropy(output, target["y"], reduction="none")
    return ((1 - torch.exp(-each)) ** 2 * each).mean()


def each(output, target, **more):
    return F.cross_entropy(output, target["y"], reduction="none", **more)


INSIDE = {
    "cross-entropies": lambda o, t: (
        focal(o, t) + (each(o, t) * t["w"]).sum() / t["w"].sum() + each(o, t, label_smoothing=0.1).square().mean()
        + each(o, t, weight=CLASSES).square().mean() + each(o, t, ignore_index=1).square().mean()
        + F.cross_entropy(o, t["y"])),
    "others": lambda o, t: (
        F.nll_loss(o.log_softmax(1), t["y"], CLASSES, reduction="none").square().mean()
        + (F.binary_cross_entropy_with_logits(o, t["z"].sigmoid(), pos_weight=CLASSES, reduction="none") ** 2).mean()
        + F.smooth_l1_loss(o, t["z"], reduction="none", beta=0.3).sum(1).square().mean()
        + F.huber_loss(o, t["z"], reduction="none", delta=0.3).sum(1).square().mean()
        + F.poisson_nll_loss(o, t["y"].double().unsqueeze(1).expand_as(o), reduction="none").sum(1).square().mean()),
}


@slow("spellings")
@few(1, "further cases of one kind")
@pytest.mark.parametrize("name", INSIDE)
def test_loss_functions_inside_a_loss(name):
    check(INSIDE[name], plain(), TARGET, [*SCALES, "diag_h"])


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 6).double()

    def forward(self, x):
        return torch.tanh(self.layer(x)).view(x.shape[0], 2, 3)


@slow("spellings")
def test_flat_token_losses_inside_a_loss():
    tags = {"y": torch.tensor([[0, 2], [-100, 1], [1, 1], [2, -100]])}

    def loss(output, target):
        flat = F.cross_entropy(output.view(-1, 3), target["y"].view(-1), reduction="none")
        counted = target["y"] != -100
        return (flat.view(target["y"].shape) * counted).sum() / counted.sum()

    check(loss, Tagger(), tags, [*SCALES, "diag_h"])


TOKEN_MEANS = {
    "samples": lambda flat, labels: labels.shape[0],
    "tokens": lambda flat, labels: flat.shape[0],
    "counted tokens": lambda flat, labels: (labels != -100).sum(),
    "a part of each": lambda flat, labels: (labels[:, 1:] != -100).sum(),
}


@few(2, "further cases of one kind")
@pytest.mark.parametrize("name", TOKEN_MEANS)
def test_flat_token_losses_over_a_number_are_means(name):
    tags = {"y": torch.tensor([[0, 2], [-100, 1], [1, 1], [2, -100]])}

    def loss(output, target):
        flat, labels = output.view(-1, 3), target["y"]
        return F.cross_entropy(flat, labels.view(-1), reduction="sum") / TOKEN_MEANS[name](flat, labels)

    check(loss, Tagger(), tags, [*SCALES, "diag_h"])


def test_multilabel_margin_loss():
    """torch's own way of taking it apart mixes up samples and classes; it has no second derivative of it either."""
    listed = torch.tensor([[2, 0, -1], [1, -1, 0], [0, 1, 2], [-1, 1, 0]])

    def by_hand(output, target):
        rows = []
        for row, classes in zip(output, listed.tolist(), strict=True):
            own = classes[: classes.index(-1)] if -1 in classes else classes
            others = [place for place in range(3) if place not in own]
            pairs = [torch.relu(1 - row[i] + row[j]) for i in own for j in others]
            rows.append(torch.stack([row.sum() * 0, *pairs]).sum() / 3)
        return torch.stack(rows).mean()

    def loss(output, target):
        each = F.multilabel_margin_loss(output, target, reduction="none")
        return (F.multilabel_margin_loss(output, target) + each.mean()
                + F.multilabel_margin_loss(output, target, reduction="sum") / number(output)) / 3

    model = plain()
    result = hbp.compile(model, loss, ["grad", "batch_grad"])(X, listed)
    for quantity in ("grad", "batch_grad"):
        for name, value in reference(model, by_hand, (X,), listed, quantity).items():
            close(result[quantity][name], value, name)


# -- targets of the model's own making -------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()

    def forward(self, x):
        return self.a(x), self.b(torch.tanh(x))


def test_constants_and_detached_values_as_targets():
    def loss(output, target):
        logits, other = output
        sure = F.binary_cross_entropy_with_logits
        return (sure(logits, torch.ones_like(logits)) + sure(other, torch.full_like(logits, 0.3))
                + F.cross_entropy(logits, other.detach().softmax(1)) + F.mse_loss(other, logits.detach())
                + F.cross_entropy(logits, logits.argmax(1)) + F.mse_loss(logits, 0.9 * torch.zeros_like(logits)))

    check(loss, Two(), TARGET, [*SCALES, "diag_h"])


TRAINED = {
    "errors": lambda a, b: F.mse_loss(a, b) + F.smooth_l1_loss(a, b) + F.huber_loss(a, b, delta=0.4) + F.l1_loss(b, a),
    "probabilities": lambda a, b: (
        F.kl_div(a.log_softmax(1), b.softmax(1), reduction="batchmean") + F.cross_entropy(a, b.softmax(1))
        + F.binary_cross_entropy_with_logits(a, b.sigmoid()) + F.binary_cross_entropy(a.sigmoid(), b.sigmoid())),
    "contrasts": lambda a, b: (
        F.cosine_embedding_loss(a, b, torch.ones_like(a[:, 0])) + F.triplet_margin_loss(a, b, a.flip(1))),
}


@few(1, "further cases of one kind")
@pytest.mark.parametrize("name", TRAINED)
def test_losses_of_two_trained_values(name):
    check(lambda output, target: TRAINED[name](*output), Two(), TARGET, [*SCALES, "diag_h"])


@pytest.mark.parametrize(("model", "loss", "y"), [
    (nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(-1)), nn.NLLLoss(), torch.tensor([0, 1, 2])),
    (nn.Linear(4, 3), nn.L1Loss(), torch.ones(3, 3)),
    (nn.Linear(4, 3), lambda o, y: (o * y).mean(), torch.ones(3, 3)),
], ids=["NLLLoss behind LogSoftmax", "L1Loss", "a product"])
def test_a_loss_that_is_linear_in_the_output_is_said(model, loss, y):
    X = torch.randn(3, 4)
    with pytest.warns(hbp.LossWarning, match=r"is linear .* GGN is zero, and with it diag_ggn, kflr; .* logits"):
        result = hbp.compile(model, loss, ["diag_ggn", "kflr"])(X, y)
    assert not any(value.any() for value in result.diag_ggn.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.LossWarning)
        hbp.compile(model, loss, ["grad", "diag_h"])(X, y)
        hbp.compile(nn.Linear(4, 3), nn.CrossEntropyLoss(), ["diag_ggn"])(X, torch.tensor([0, 1, 2]))
