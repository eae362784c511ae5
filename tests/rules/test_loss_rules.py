"""What losses say about bad targets, and the cross-entropy's factor at extreme logits."""

import itertools
from dataclasses import replace

import pytest
import torch

from hbpcompiler.rule import Case, Diagonal, LossRule, Op
from hbpcompiler.rule.probabilities import covariance_root
from hbpcompiler.rule.registry import builtin
from hbpcompiler.testing import check_rule

NAN = float("nan")
FLOAT = {"reduction": 1}
CROSS = {**FLOAT, "ignore_index": -100, "label_smoothing": 0.0}


def complaint(operation, target, output=(3,), attributes=FLOAT, input="self", **more):
    rule = builtin().find(operation, "")
    shapes = {input: output, "target": tuple(target.shape[1:])}
    op = Op({}, {**attributes, **more}, shapes)
    return rule.check(op, target)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (torch.tensor([0, 1, 3, 2]), ["target[2] is 3", "between 0 and 2"]),
        (torch.tensor([0, -1, 1, 2]), ["target[1] is -1", "3 classes"]),
        (torch.tensor([0.0, 1.0, 2.0, 0.0]), ["torch.int64", "torch.float32"]),
        (torch.tensor([0, 1, 2, 0], dtype=torch.int32), ["torch.int64", "torch.int32"]),
        (torch.tensor([-100, -100]), ["every target", "-100", "nan"]),
        (torch.tensor([[0.5, 0.5, NAN]]), ["target[0, 2] is nan"]),
        (torch.tensor([[0.5, 0.6, -0.1]]), ["target[0, 2] is -0.1", "negative"]),
    ],
)
def test_cross_entropy_names_the_bad_target(target, words):
    found = complaint("aten.cross_entropy_loss", target, attributes=CROSS)
    assert found is not None
    assert all(word in found for word in words), found


def test_cross_entropy_takes_good_targets():
    cross_entropy = "aten.cross_entropy_loss"
    assert complaint(cross_entropy, torch.tensor([0, 2, -100]), attributes=CROSS) is None
    assert complaint(cross_entropy, torch.tensor([0, 2, 255]), attributes={**CROSS, "ignore_index": 255}) is None
    assert complaint(cross_entropy, torch.tensor([-100]), attributes={**CROSS, "reduction": 2}) is None
    assert complaint(cross_entropy, torch.rand(4, 3), attributes=CROSS) is None


@pytest.mark.parametrize(
    ("operation", "target", "words"),
    [
        ("aten.huber_loss", torch.tensor([[0, 1, 2]]), ["torch.int64", "floating"]),
        ("aten.huber_loss", torch.tensor([[0.0, NAN, 2.0]]), ["target[0, 1] is nan"]),
        ("aten.binary_cross_entropy_with_logits", torch.tensor([[0, 1, 1]]), ["floating"]),
        ("aten.kl_div", torch.tensor([[0.5, -0.5, 1.0]]), ["target[0, 1] is -0.5"]),
    ],
)
def test_other_losses_name_the_bad_target(operation, target, words):
    found = complaint(operation, target, log_target=False)
    assert found is not None
    assert all(word in found for word in words), found


def test_poisson_refuses_negative_counts():
    found = complaint("aten.poisson_nll_loss", torch.tensor([[1.0, -2.0, 0.0]]), input="input")
    assert found is not None
    assert "target[0, 1] is -2.0" in found


TOLERANCES = [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_covariance_root_at_extreme_logits(dtype, tolerance):
    torch.manual_seed(0)
    logits = [torch.randn(50, 5) * scale for scale in (0.1, 1, 30, 1e4)]
    extremes = ((-1e4, 0.0, 1e4), (-90.0, -40.0, 0.0))
    logits += [torch.tensor(list(itertools.product(values, repeat=5))) for values in extremes]
    p = torch.softmax(torch.cat(logits).to(dtype), 1)
    columns = covariance_root(p)
    assert columns.dtype == dtype
    assert torch.isfinite(columns).all()
    found = torch.einsum("nka,nkb->nab", columns.double(), columns.double())
    p = p.double() / p.double().sum(1, keepdim=True)
    expected = torch.diag_embed(p) - p.unsqueeze(1) * p.unsqueeze(2)
    assert (found - expected).abs().max() < tolerance


SINGLE = [Case({"self": (3,), "target": (3,)})]


@pytest.mark.parametrize(("fields", "words"), [
    ({"reduction": lambda op: "sum"}, "reduction says 'sum', and in a batch of one alone the gradient of l_n"),
    ({"reduction": lambda op: "none"}, "reduction says 'none'; of an operation that makes one number"),
    ({"reduction": lambda op: "average"}, "reduction says 'average'; of an operation"),
    ({}, "gradient of l_n, of which the loss is the mean: off by"),
])
def test_a_reduction_that_it_is_not(fields, words):
    """The derivatives of the mean over all that there is, which is no mean of what samples have alone, nor a sum."""
    rule = LossRule(["aten.mse_loss"], gradient=lambda op: 2 * (op.self - op.target) / op.self.numel(),
                    residual=Diagonal(lambda op: torch.full_like(op.self, 2 / op.self.numel())),
                    each=lambda op: (op.self - op.target).square().sum(1) / op.self.numel(),
                    reduction=lambda op: "mean", cases=SINGLE)
    with pytest.raises(AssertionError, match=words):
        check_rule(replace(rule, **fields))


def test_losses_have_the_order_of_slopes_alone():
    rule = builtin().find("aten.mse_loss", "")
    with pytest.raises(TypeError, match="a LossRule's order is that of slopes"):
        replace(rule, order=("convex",))


@pytest.mark.parametrize("terms", [None, lambda op, target: 7, lambda op, target: target.numel()])
def test_terms_that_a_mean_does_not_go_over_are_noticed(terms):
    """By which batches would be weighed where they are added up; of targets of which some are ignored."""
    rule = builtin().find("aten.cross_entropy_loss", "")
    with pytest.raises(AssertionError, match="terms: off by"):
        check_rule(replace(rule, terms=terms))


