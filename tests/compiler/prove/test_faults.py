"""Each fault that a compiler or a model may have is caught, and the error says where to look.

Some are made on purpose, in a rule or in a stage; others are the user's to have.
"""

import contextlib
from dataclasses import replace

import pytest
import sympy
import torch
from torch import nn
from torch.nn.modules import module as torch_module

import hbpcompiler as hbp
from hbpcompiler.compiler.match import fuse
from hbpcompiler.compiler.prove.draws import Draws
from hbpcompiler.compiler.prove.elsewhere import STRETCHES, TIMES
from hbpcompiler.compiler.prove.prove import FEW, prove
from hbpcompiler.compiler.prove.refused import check
from hbpcompiler.compiler.prove.suspects import hooks
from hbpcompiler.compiler.trace import export
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.compiler.trace.graph import Graph
from hbpcompiler.compiler.trace.patches import detached
from hbpcompiler.rule import Diagonal
from hbpcompiler.rule.registry import Registry
from tests.compiler.prove.test_agreement import batch
from tests.custom_op import swirl
from tests.user_code import Cubed


class Around(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer, self.head, self.function = nn.Linear(4, 5), nn.Linear(5, 3), function

    def forward(self, x):
        return self.head(self.function(self.layer(x)))


def refusal(model, quantities=("grad",), **options):
    """The error's text, and that no program is kept."""
    compiled = hbp.compile(model.double(), quantities=list(quantities), **options)
    X, y = batch()
    with pytest.raises(hbp.ProofError) as caught:
        compiled(X.double(), y)
    assert "programs=0" in repr(compiled)
    with pytest.raises(hbp.CompileError, match="there is no program yet"):
        print(compiled.code)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


class Straight(torch.autograd.Function):
    """Its backward is that of the identity."""

    @staticmethod
    def forward(ctx, x):
        return torch.sign(x)

    @staticmethod
    def backward(ctx, g):
        return g


class OfALayer(torch.autograd.Function):
    """Its layer's parameters are none of what it is given."""

    @staticmethod
    def forward(ctx, x, layer):
        return x @ layer.weight.T

    @staticmethod
    def backward(ctx, g):
        return None, None


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(OfALayer.apply(x, self.layer))


@pytest.mark.filterwarnings("ignore::hbpcompiler.errors.UnusedParametersWarning")
def test_a_custom_function_that_reads_parameters_by_itself():
    text = refusal(Hidden(), ["grad"])
    assert "reads something trained that apply() was not given" in text
    assert "in Hidden's forward" in text
    assert f"{__file__}:" in text
    assert "hbpcompiler's own fault" not in text


@pytest.mark.parametrize("quantities", [["grad"], ["diag_h"]])
def test_a_custom_backward(quantities):
    text = refusal(Around(Straight.apply), quantities)
    assert "grad of 'layer.weight': off by" in text
    assert "the gradient agrees at 'head.weight', 'head.bias'" in text
    assert "custom autograd.Function Straight (" in text
    assert "called in Around's forward" in text
    assert f"{__file__}:" in text
    assert "x + (Straight.apply(x) - x).detach()" in text
    assert "no_grad" not in text  # what a custom function does inside is not said twice


def test_a_custom_backward_that_is_the_derivative():
    X, y = batch()
    result = hbp.compile(Around(Cubed.apply), quantities=["grad"])(X, y)
    assert result.grad["layer.weight"].abs().max() > 0


def test_hooks():
    def tenfold(h):
        if h.requires_grad:
            h.register_hook(lambda g: 10 * g)
        return h

    text = refusal(Around(tenfold))
    assert "test_hooks.tenfold.<lambda>" in text
    assert "a hook of a tensor, registered in Around's forward" in text
    model = Around(nn.Tanh())
    model.layer.register_full_backward_pre_hook(lambda module, g: (10 * g[0],))
    assert "a backward hook of module 'layer' (Linear)" in refusal(model)
    model = Around(nn.Tanh())
    model.head.bias.register_hook(lambda g: g.clamp(-0.001, 0.001))
    text = refusal(model)
    assert "a hook of parameter 'head.bias'" in text
    assert "grad of 'head.bias'" in text
    assert "grad of 'layer" not in text


def test_hooks_that_can_be_seen_without_running():
    model = Around(nn.Tanh())
    assert hooks(model, nn.CrossEntropyLoss()) == []
    model.head.register_full_backward_hook(lambda *given: None)
    model.layer.weight.register_hook(lambda g: g)
    first, second = hooks(model, nn.CrossEntropyLoss())
    assert "module 'head'" in first
    assert "parameter 'layer.weight'" in second
    with pytest.warns(UserWarning, match="backward hook of module 'head'"):
        hbp.compile(model, quantities=["grad"], verify=False)(*batch())


def test_a_hook_of_all_modules():
    """It would wrap the module that is traced, too, whose loss it takes apart."""
    X, y = batch()
    handle = torch_module.register_module_full_backward_pre_hook(lambda module, made: (5 * made[0], *made[1:]))
    try:
        assert "a backward hook of all modules" in refusal(Around(nn.Tanh()))
    finally:
        handle.remove()
    seen = torch.zeros(())
    handle = torch_module.register_module_full_backward_hook(lambda *given: seen.add_(1) and None)
    try:
        hbp.compile(Around(nn.Tanh()), quantities=["grad"])(X, y)
    finally:
        handle.remove()
    assert seen > 0


def test_a_hook_that_changes_nothing():
    X, y = batch()
    model, seen = Around(nn.Tanh()), torch.zeros(())
    model.layer.register_full_backward_hook(lambda *given: seen.add_(1) and None)
    hbp.compile(model, quantities=["grad"])(X, y)
    assert seen == 1 + len(TIMES) + len(STRETCHES)  # the model's own step, the loss multiplied, other numbers


def test_a_wrong_transposed_jacobian(monkeypatch):
    wrong = registry_with("aten.tanh", lambda rule: replace(
        rule, jac_t={"self": lambda op, columns: 1.01 * columns * (1 - op.output.square()).unsqueeze(1)},
        derivative=lambda op: 1.01 * (1 - op.output.square())))
    monkeypatch.setattr(Registry, "find", wrong)
    for quantities in (["grad"], ["diag_ggn"]):
        text = refusal(Around(torch.tanh), quantities)
        assert "grad of 'layer.weight'" in text
        assert "report it" in text


def registry_with(operation, changed):
    find = Registry.find

    def found(self, target, overload):
        rule = find(self, target, overload)
        return changed(rule) if rule is not None and target == operation else rule

    return found


def test_a_wrong_rule_of_the_users_is_named(tmp_path):
    file = tmp_path / "swirls.py"
    file.write_text('''
from hbpcompiler.rule import ZERO, Rule

SWIRL = Rule(operations=["hbptests.swirl"], residual=ZERO, jac_t={"self": lambda op, columns: 2 * columns})
''')
    text = refusal(Around(swirl), rules=[file])
    assert f"the rule for hbptests.swirl in {file}, used in the model's forward" in text
    assert "hbpcompiler.testing.check_rule compares it with autograd" in text
    assert "own fault" not in text


def test_a_wrong_contraction_of_a_parameter(monkeypatch):
    """The bias of a linear layer meets half the columns."""
    def halved(rule):
        def params(op):
            found = dict(rule.params(op))
            return {**found, "bias": replace(found["bias"], columns=lambda op, columns: 0.5 * columns)}

        return replace(rule, params=params)

    monkeypatch.setattr(Registry, "find", registry_with("aten.linear", halved))
    text = refusal(Around(nn.Tanh()), ["grad", "batch_l2"])
    assert "grad of 'layer.bias'" in text
    assert "grad of 'layer.weight'" not in text


def test_a_wrong_residual_needs_the_full_proof(monkeypatch):
    wrong = registry_with("aten.tanh", lambda rule: replace(
        rule, residual=Diagonal(lambda op, g: g * (1 - op.output.square()))))
    monkeypatch.setattr(Registry, "find", wrong)
    X, y = batch()
    model = Around(torch.tanh).double()
    compiled = hbp.compile(model, quantities=["diag_h", "diag_ggn"], example_inputs=(X.double(), y))
    wrong_lines = compiled.verify(X.double(), y).wrong
    assert {line.quantity for line in wrong_lines} == {"diag_h"}
    assert {line.parameter for line in wrong_lines} == {"layer.weight", "layer.bias"}
    assert "diag_h of 'layer.weight'" in refusal(model, ["diag_h"], verify="full")


def test_operations_that_are_fused_wrongly(monkeypatch):
    """As when a clamp lost its derivative beside others."""
    composed = fuse._composed

    def without_choice(*given):
        expression = composed(*given)
        if expression is None:
            return None
        return expression.replace(sympy.Piecewise, lambda *pairs: pairs[-1][0])

    monkeypatch.setattr(fuse, "_composed", without_choice)
    model = Around(lambda h: (2 * h).clamp(-0.3, 0.3))
    X, y = batch()
    hbp.compile(model.double(), quantities=["grad"])(X.double(), y)  # such ones are not joined, it is looked at before
    monkeypatch.setattr(fuse, "keeps_digits", lambda *given: True)
    for quantities in (["grad"], ["diag_h"]):
        assert "grad of 'layer.weight'" in refusal(model, quantities)


def test_a_path_that_is_dropped(monkeypatch):
    """One of two ways from a parameter to the loss."""
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            h = self.layer(x)
            return h + torch.sin(h)

    active = Graph.__dict__["active"].func
    monkeypatch.setattr(Graph, "active", property(
        lambda graph: active(graph) - {operation.name for operation in graph.operations
                                       if operation.target == "aten.sin"}))
    assert "grad of 'layer.weight'" in refusal(Two())


def test_a_gradient_of_few_samples_is_proven_where_the_program_gives_none():
    """And a known program's table shows what became wrong."""
    torch.manual_seed(0)
    model, (X, y) = Around(nn.Tanh()), batch(3 * FEW)
    compiled = hbp.compile(model, quantities=["diag_ggn"], example_inputs=(X, y))
    table = compiled.verify(X, y, full=False)
    assert f"of {FEW} samples" in str(table)
    assert "a gradient-only program" in str(table)
    model.layer.weight.register_hook(lambda g: 2 * g)
    candidate, data = compiled._candidate(*compiled._program_used()), batch_of((X, y))
    draws = Draws.now(X.device)
    wrong = prove(candidate, data, draws)
    assert [line.parameter for line in wrong.wrong] == ["layer.weight"]
    with pytest.raises(hbp.ProofError, match=r"a hook of parameter 'layer\.weight'"):
        check(wrong, candidate, data, draws)


class Inference(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.layer, self.block = nn.Linear(4, 3), block

    def forward(self, x):
        with torch.inference_mode():
            aside = torch.sin(self.block(self, x))
        return self.layer(x) + aside


def test_inference_mode_that_the_trace_does_not_see_is_refused_by_the_proof(monkeypatch):
    """The trace sees it (tests/compiler/trace/fx_graph/test_gradients_off.py) because gradients are turned off with
    it."""
    X, y = batch()
    untouched = Inference(lambda model, x: 2 * x[:, :3])
    result = hbp.compile(untouched, quantities=["grad"])(X, y)  # nothing trained comes in, so it changes nothing
    assert result.grad["layer.weight"].abs().max() > 0
    monkeypatch.setattr(detached, "_enter_without_gradients", lambda block: None)
    monkeypatch.setattr(detached, "_leave_without_gradients", lambda block, *error: None)
    text = refusal(Inference(lambda model, x: model.layer(x)))
    assert "torch.inference_mode(), used in" in text
    assert f"{__file__}:" in text
    assert "x.detach()" in text


def test_code_that_goes_another_way_for_one_sample(monkeypatch):
    """torch.export leaves no trace of such a branch (trace/conditions/one_sample.py does), and the program for several
    samples stays."""
    monkeypatch.setattr(export, "ways_of_one_noted", contextlib.nullcontext)
    model = Around(lambda h: h.square() if h.shape[0] == 1 else h.sin()).double()
    compiled = hbp.compile(model, quantities=["grad"])
    X, y = batch()
    X = X.double()
    before = compiled(X, y).grad["layer.weight"]
    with pytest.raises(hbp.ProofError, match=r"grad of 'layer\.weight'"):
        compiled(X[:1], y[:1])
    torch.testing.assert_close(compiled(X, y).grad["layer.weight"], before)
    assert "programs=1" in repr(compiled)


class Root(nn.Module):
    def forward(self, h):
        return h.sqrt()


class Limited(nn.Module):
    def forward(self, h):
        return h.clamp(min=torch.zeros_like(h[0]))  # torch's own derivative


class Squared(nn.Module):
    def forward(self, h):
        return h.exp() ** 2


class Turned(nn.Module):
    def forward(self, h):
        return h.atan()


def test_an_infinite_slope_that_meets_a_zero_one():
    """exp(h)^2 is infinite, atan is flat there, and torch multiplies its 0 by exp(h) twice."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), Squared(), Turned(), nn.Linear(5, 3))
    nn.init.constant_(model[0].bias, 400.0)
    text = refusal(model)
    assert "infinite or NaN in the program, where the model's own numbers are finite" in text
    assert "An infinite slope (sqrt" in text


def test_derived_rules_select_as_torch_does():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), Limited(), Root(), nn.Linear(5, 3)).double()
    X, y = batch()
    X = X.double()
    found = hbp.compile(model, quantities=["grad"])(X, y).grad
    wanted = torch.autograd.grad(nn.functional.cross_entropy(model(X), y), list(model.parameters()))
    for value, right in zip(found.values(), wanted, strict=True):
        torch.testing.assert_close(value, right)
