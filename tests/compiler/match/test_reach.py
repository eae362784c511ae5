"""Parameters that no derivative reaches: left out with a warning, or, where that is all of them, refused."""

import re
import warnings

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.reach import with_stops
from hbpcompiler.rule.registry import builtin
from tests.agreement import close
from tests.selection import few
from tests.stages import traced

X, Y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])


class Heads(nn.Module):
    """Two layers, and how they make an output."""

    def __init__(self, output):
        super().__init__()
        self.main, self.aux = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
        self.output = output

    def forward(self, x):
        return self.output(self.main(x), self.aux(x))


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, step):
        return x.sign() if step == "sign" else (x > 0).double()

    @staticmethod
    def backward(ctx, slope):
        return slope, None


NAMED = "it stands in the custom autograd.Function Sign: .*" + re.escape("x + (Sign.apply(x) - x).detach()")
REFUSED = {
    "a sign with a backward of its own": (lambda a, b: Sign.apply(a + b, "sign"), f"sign in .*{NAMED}"),
    "truth values with a backward of their own": (lambda a, b: Sign.apply(a + b, "truth"), f"gt in .*{NAMED}"),
    "detached": (lambda a, b: (a * b).detach(), "detach in the model's forward.*no derivative passes it"),
    "rounded": (lambda a, b: a.round() + b.floor(), "(?s)round in .*zero everywhere.*floor in .*zero everywhere"),
    "whole numbers": (lambda a, b: nn.functional.one_hot((a + b).argmax(1), 2).double(), "argmax in .*whole numbers"),
    "truth values": (lambda a, b: (a > b).double(), r"gt in .*truth values"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_nothing_that_is_trained_reaches_the_loss(name):
    output, words = REFUSED[name]
    with pytest.raises(hbp.CompileError, match=words) as caught:
        hbp.compile(Heads(output), quantities=["grad"])(X, Y)
    assert isinstance(caught.value, ValueError)
    assert "No trainable parameter influences the loss" in str(caught.value)
    assert f"{__file__}:" in str(caught.value)


@pytest.mark.filterwarnings("ignore::hbpcompiler.UnusedParametersWarning")
@pytest.mark.parametrize("step", ["sign", "truth"])
def test_a_backward_that_is_not_run_is_found_out_where_other_parameters_reach_the_loss(step):
    with pytest.raises(hbp.ProofError, match=r"(?s)'aux\.weight'.*custom autograd.Function Sign"):
        hbp.compile(Heads(lambda a, b: a + Sign.apply(b, step)), quantities=["grad"])(X, Y)


def test_a_loss_that_ignores_the_output():
    with pytest.raises(hbp.CompileError, match="computed without anything that depends on them"):
        hbp.compile(nn.Linear(3, 2).double(), lambda o, t: t.double().mean(), quantities=["grad"])(X, Y)


@pytest.mark.parametrize("end", [lambda value: value.detach(), lambda value: value.detach().requires_grad_(),
                                 lambda value: (value + value).detach()])
def test_a_loss_that_is_detached_at_its_end(end):
    with pytest.raises(hbp.CompileError, match=r"No trainable parameter influences the loss(?s:.*)detach in the loss"):
        hbp.compile(nn.Linear(3, 2).double(), lambda o, t: end(nn.functional.cross_entropy(o, t)), ["grad"])(X, Y)


UNUSED = {
    "never used": lambda a, b: a,
    "detached": lambda a, b: a * b.detach(),
    "compared": lambda a, b: torch.where(b > 0, a, 2 * a),
    "an output of its own": lambda a, b: (a, b),
    "made into constants": lambda a, b: a + torch.ones_like(b) * torch.zeros_like(b),
}


@few(2, "further cases of one kind")
@pytest.mark.parametrize("name", UNUSED)
def test_unused_parameters_are_left_out_as_torch_leaves_them(name):
    model = Heads(UNUSED[name])

    def loss(output, target):
        return nn.functional.cross_entropy(output[0] if isinstance(output, tuple) else output, target)

    compiled = hbp.compile(model, loss, ["grad", "batch_l2", "diag_h"])
    with pytest.warns(hbp.UnusedParametersWarning, match=r"aux\.weight, aux\.bias") as warned:
        result = compiled(X, Y)
    assert warned[0].filename == __file__
    loss(model(X), Y).backward()
    assert model.aux.weight.grad is None
    for quantity in result:
        assert list(result[quantity]) == ["main.weight", "main.bias"]
    close(result.grad["main.weight"], model.main.weight.grad, "grad")
    assert "aux_weight" not in compiled.code.split("# ---- backward ----")[1]
    model.aux.bias.grad = torch.ones(2, dtype=torch.float64)
    result.to_parameters()
    assert model.aux.weight.grad is None
    assert model.aux.bias.grad.tolist() == [1, 1]
    assert not hasattr(model.aux.weight, "diag_h")
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.UnusedParametersWarning)
        model.train(False)
        compiled(X, Y)  # another program: it is said once


def test_steps_beside_others_have_the_derivative_zero_that_torch_gives_them():
    model = Heads(lambda a, b: a + b.round())
    result = hbp.compile(model, quantities=["grad"])(X, Y)
    nn.functional.cross_entropy(model(X), Y).backward()
    for name, parameter in model.named_parameters():
        close(result.grad[name], parameter.grad, name)
    assert not result.grad["aux.weight"].any()


def test_operations_that_no_derivative_passes():
    graph = with_stops(traced(Heads(lambda a, b: a * b.detach()), X, Y).graph, builtin())
    assert len(graph.stops) == 1
    assert graph.stops.isdisjoint(graph.active)


def test_a_product_with_zero_has_no_say_unless_a_parameter_has_that_alone():
    def with_zero(both, y):
        return (both[0] * 0).sum() + nn.functional.cross_entropy(both[1], y)

    for apart, stops in ((False, 1), (True, 0)):
        model = Heads(lambda a, b, apart=apart: (b if apart else a, a))
        graph = with_stops(traced(model, X, Y, loss=with_zero).graph, builtin())
        assert len(graph.stops) == stops
        result = hbp.compile(model, with_zero, ["grad"])(X, Y)
        assert ("aux.weight" in result.grad) == apart
        assert not apart or not result.grad["aux.weight"].any()
