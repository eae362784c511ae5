"""Elementwise operations of one module become one, on graphs written by hand."""

import pytest
import torch
import torch.nn.functional as F

import hbpcompiler as hbp
from hbpcompiler.compiler.match.fuse import fuse
from hbpcompiler.compiler.match.operation.bind import bind
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.reference import reference
from hbpcompiler.rule import Structure
from tests.hand_made import graph, operation, parameter, rules_of, value

X, Y, W = value("x", N, 3, role="input"), value("y", N, 2, role="target"), parameter("w", 2, 3)
A, SIZE, MORE, OUT = (value(name, N, 2) for name in ("a", "size", "more", "out"))


def softsign(module="soft", other=None, outputs=None):
    """a / (1 + |a|), in one module or not."""
    return graph([
        operation("linear", A, {"bias": None}, input=X, weight=W),
        operation("abs", SIZE, module=module, self=A),
        operation("add", MORE, {"other": 1, "alpha": 1}, overload="Scalar", module=other or module, self=SIZE),
        operation("div", OUT, overload="Tensor", module=module, self=A, other=MORE),
        operation("mse_loss", value("loss"), {"reduction": 1}, in_loss=True, **{"self": OUT, "target": Y}),
    ], state=[W], inputs=[X], targets=[Y], outputs=outputs or [OUT])


def fused(found):
    return fuse(found, rules_of(found))


def test_three_become_one():
    made, rules = fused(softsign())
    assert [own.target for own in made.operations] == ["aten.linear", "fused.elementwise", "aten.mse_loss"]
    whole = made.operations[1]
    assert dict(whole.tensors) == {"self": A}
    assert rules.keys() == {"a", "out", "loss"}
    assert rules["out"].structure_of(None) is Structure.ELEMENTWISE


def test_it_computes_and_differentiates_what_the_three_did():
    made, rules = fused(softsign())
    a = torch.tensor([[-3.0, -0.5, 0.25, 2.0]], dtype=torch.float64, requires_grad=True)
    op = bind(made.operations[1], {"self": a}.__getitem__, {"a", "out"})
    found = rules["out"].forward(op)
    found = found[0] if isinstance(found, tuple) else found
    torch.testing.assert_close(found, torch.nn.functional.softsign(a))
    (slope,) = torch.autograd.grad(found.sum(), a)
    op = bind(made.operations[1], {"self": a.detach(), "output": found.detach()}.__getitem__, {"a", "out"})
    torch.testing.assert_close(rules["out"].derivative(op), slope)


def test_operations_of_another_module_stay():
    made, _ = fused(softsign(other="elsewhere"))
    assert len(made.operations) == 5


def test_what_the_model_returns_stays():
    made, _ = fused(softsign(outputs=[OUT, SIZE]))
    assert "size" in {own.name for own in made.operations}


class Switched(torch.nn.Module):
    """A flag that takes part in the arithmetic: True is 1."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)

    def forward(self, x, on=True):
        return self.outer(torch.tanh(self.inner(x)) * on + on)


def test_a_flag_is_a_number():
    torch.manual_seed(0)
    model = Switched().double()
    x, y = torch.randn(5, 3).double(), torch.tensor([0, 1, 1, 0, 1])
    result = hbp.compile(model, quantities=["grad", "diag_h"])(x, y)
    for quantity in ("grad", "diag_h"):
        expected = reference(model, torch.nn.CrossEntropyLoss(), (x,), y, quantity)
        for name, found in result[quantity].items():
            torch.testing.assert_close(found, expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("function", [F.softplus, F.logsigmoid, F.gelu, F.mish, torch.sigmoid])
def test_what_is_a_number_inside_is_one(function):
    """sympy knows nothing of softplus(0), as of beta h with beta = 0."""
    torch.manual_seed(0)
    model = Gated(function).double()
    X, y, loss = torch.randn(4, 3).double(), torch.randn(4, 3).double(), torch.nn.MSELoss()
    found = hbp.compile(model, loss, ["grad", "diag_h"])(X, y)
    for quantity in ("grad", "diag_h"):
        for name, right in reference(model, loss, [X], y, quantity).items():
            torch.testing.assert_close(getattr(found, quantity)[name], right)


class Gated(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer, self.function = torch.nn.Linear(3, 3), function

    def forward(self, x):
        hidden = self.layer(x)
        return hidden * self.function(0.0 * hidden)
