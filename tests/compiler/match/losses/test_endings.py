"""How a loss ends: sums, means and multiples of them."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.losses.endings import ending_of, refuse_endings, sign_of, tail_refusals, unknown
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.errors import UnsupportedOpError
from hbpcompiler.rule.registry import builtin
from tests.agreement import agree
from tests.hand_made import graph, operation, parameter, rules_of, value

X, W, Y = value("x", N, 3, role="input"), parameter("w", 2, 3), value("y", N, 2, role="target")
OUTPUT = value("output", N, 2)
LINEAR = operation("linear", OUTPUT, {"bias": None}, input=X, weight=W)
MEAN, SUM = 1, 2


def reduced(name, reduction):
    return operation("mse_loss", value(name), {"reduction": reduction}, in_loss=True, **{"self": OUTPUT, "target": Y})


def number(target, name, attributes=(), overload="Tensor", **tensors):
    return operation(target, value(name), attributes, overload=overload, in_loss=True, **tensors)


def ending(*tail, state=(W,)):
    return graph([LINEAR, *tail], state=list(state), inputs=[X], targets=[Y], outputs=[OUTPUT])


@pytest.mark.parametrize(("reduction", "kind"), [(MEAN, "mean"), (SUM, "sum")])
def test_one_reduction(reduction, kind):
    found = ending(reduced("loss", reduction))
    end = ending_of(found, rules_of(found), {})
    assert end.kind == kind
    assert end.multiples == {"loss": 1.0}
    assert [operation.name for operation in end.reductions] == ["loss"]


def test_a_sum_beside_a_mean_counts_times_n():
    left, right = reduced("left", MEAN), reduced("right", SUM)
    tripled = number("mul", "tripled", {"other": 3.0}, "Scalar", self=right.output)
    total = number("add", "loss", {"alpha": 2}, self=left.output, other=tripled.output)
    found = ending(left, right, tripled, total)
    end = ending_of(found, rules_of(found), {})
    assert end.kind == "mean"
    assert end.multiples == {"left": 1.0, "right": 6.0 * N}
    assert [operation.name for operation in end.tail] == ["tripled", "loss"]


def test_a_number_that_is_known_later():
    scale = value("scale", role="constant")
    left = reduced("left", MEAN)
    found = ending(left, number("mul", "loss", self=left.output, other=scale), state=(W, scale))
    multiple = ending_of(found, rules_of(found), {}).multiples["left"]
    assert multiple == 1.0 * unknown("scale")
    assert sign_of(multiple) is None
    assert sign_of(2.0 * N) == 1
    assert sign_of(-1 / N) == -1


def test_a_curved_tail_is_refused():
    left = reduced("left", MEAN)
    root = number("sqrt", "loss", overload="", self=left.output)
    (finding,) = tail_refusals(root, builtin().find("aten.sqrt", ""), {"left", "loss"})
    assert "a curved function of the whole batch's loss" in finding
    half = number("mul", "loss", {"other": 0.5}, "Scalar", self=left.output)
    assert tail_refusals(half, builtin().find("aten.mul", "Scalar"), {"left", "loss"}) == []


def test_a_penalty_is_refused():
    theta = parameter("theta")
    left = reduced("left", MEAN)
    found = ending(left, number("add", "loss", {"alpha": 1}, self=left.output, other=theta), state=(W, theta))
    with pytest.raises(UnsupportedOpError, match="reads parameter 'theta' alone"):
        refuse_endings(found)


def test_a_model_that_makes_the_number_is_refused():
    inside = operation("sum", value("total"), {"dtype": None}, self=OUTPUT)
    with pytest.raises(UnsupportedOpError, match="The model itself reduces the batch to one number"):
        refuse_endings(ending(inside))


def balanced(output, y):
    """Factors that are equal in the first batch, and not in others."""
    losses = nn.functional.cross_entropy(output, y, reduction="none")
    positive, negative = y == 1, y == 0
    return (losses * positive).sum() / positive.sum() * negative.sum() / len(y) + (losses * negative).sum() / len(y)


def test_two_numbers_of_the_batch_do_not_cancel():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    X, y = torch.randn(6, 3, dtype=torch.float64), torch.tensor([1, 0, 1, 0, 1, 0])
    compiled = hbp.compile(model, balanced, ["grad", "batch_grad"], verify=False)
    for targets in (y, torch.tensor([1, 0, 0, 0, 0, 1]), torch.tensor([1, 1, 1, 0, 1, 1])):
        agree(compiled(X, targets), model, balanced, [X], targets)


def test_a_number_that_is_multiplied_and_divided_by():
    model, X = nn.Linear(3, 2).double(), torch.randn(5, 3, dtype=torch.float64)
    y = torch.tensor([1, 0, 1, 1, 0])

    def loss(output, y):
        kept = y == 1
        return (output.square().sum(1) * kept).sum() / (kept.sum() * 3) * kept.sum()

    agree(hbp.compile(model, loss, ["grad"], verify=False)(X, y), model, loss, [X], y)
