"""Fields of rules with something else in them than belongs there, and contractions at uses of other axes."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.rule import (
    PIECES,
    ZERO,
    Case,
    Contraction,
    Diagonal,
    Factor,
    LossRule,
    ModuleRule,
    Rule,
    Selection,
    Structure,
)
from hbpcompiler.rule.decomposition import Decomposition
from tests.agreement import agree
from tests.selection import few


def function(*given):
    return None


def rule(operations=("aten.relu",), residual=ZERO, **fields):
    return Rule(operations, residual, **fields)


def loss(**fields):
    return LossRule(**{"operations": ["aten.mse_loss"], "residual": ZERO, "gradient": function,
                       "reduction": function, **fields})


def test_what_belongs_there():
    for fields in ({"jac_t": {"self": function}}, {"structure": Structure.CONSTANT}, {"structure": Selection(function)},
                   {"structure": function}, {"residual": function}, {"residual": PIECES}, {"cases": (Case({}),)},
                   {"operations": ["aten.sum.dim_IntList"]}, {"forward": None}):
        rule(**fields)
    loss(each=None, positions=2)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: rule("aten.relu"), r"operations must be a list of names, \['aten.relu'\], not 'aten.relu'"),
    (lambda: rule(torch.ops.aten.relu), r"operations must be a list of names, \['aten.relu'\], not <Op"),
    (lambda: rule([torch.ops.aten.relu]), r"is no operation's name: .*, 'aten.relu' for torch.ops.aten.relu"),
    (lambda: rule(["aten::relu"]), "'aten::relu' is no operation's name: .*, 'aten.relu' for torch.ops.aten.relu"),
    (lambda: rule(["torch.ops.aten.relu"]), "'aten.relu' for torch.ops.aten.relu"),
    (lambda: rule(["relu"]), "'relu' is no operation's name: .*, 'mylib.relu'"),
    (lambda: rule([""]), "'' is no operation's name"),
    (lambda: rule([]), "operations must name one operation at least"),
    (lambda: rule(residual=None), "rule for aten.relu: residual must be ZERO, PIECES, Diagonal.*, not None"),
    (lambda: rule(jac_t=function), "jac_t must be a dict with a function for each argument"),
    (lambda: rule(jac_t={"self": None}), "jac_t of 'self' must be a function, not None"),
    (lambda: rule(backward={"self": 1}), "backward of 'self' must be a function, not 1"),
    (lambda: rule(params={}), r"params must be a function, not \{\}"),
    (lambda: rule(forward="x"), "forward must be a function or None, not 'x'"),
    (lambda: rule(refuse="no"), "refuse must be a function, not 'no'"),
    (lambda: rule(structure="general"), "structure must be one of Structure, a Selection, or a function of op"),
    (lambda: rule(order=["convex"]), "order must be some of .* in a tuple"),
    (lambda: rule(cases=Case({})), r"cases must be a list of Case\(...\)"),
    (lambda: rule(cases=[(4,)]), r"cases must be a list of Case\(...\)"),
    (lambda: Case({}, {}, ("self",), "Tensor"), "index, which of several results is meant, must be .*, not 'Tensor'"),
    (lambda: rule(merged=1), "merged must be True or False, not 1"),
    (lambda: loss(reduction="mean"), "reduction must be a function of op, lambda op: 'mean'"),
    (lambda: loss(gradient=None), "gradient must be a function, not None"),
    (lambda: loss(positions=9), "positions must be 1, 2 or None, not 9"),
    (lambda: loss(residual=0), "rule for aten.mse_loss: residual must be ZERO"),
    (lambda: Diagonal(0), "Diagonal: diagonal must be a function, not 0"),
    (lambda: Factor(6, function), "Factor: count must be a function, not 6"),
    (lambda: ModuleRule("LSTM", function), "module must be a class of nn.Module, such as nn.LSTM, not 'LSTM'"),
    (lambda: ModuleRule(nn.LSTM, None), "ModuleRule of LSTM: forward must be a function, not None"),
    (lambda: Decomposition("aten.relu", function), "Decomposition: operations must be a list"),
    (lambda: Decomposition(["aten.relu"], None), "decomposition of aten.relu: function must be a function"),
    (lambda: Contraction("nko->nko", operand=0), "it has an operand and no letters for it"),
    (lambda: Contraction("nko->nko", columns=0), "columns must be a function, not 0"),
    (lambda: Contraction("nko,ni->nkoi"), r"it speaks of an operand, \"ni\", and has none: operand="),
    (lambda: Contraction("nko,ni", operand=function), r"that is no equation: it has letters as in \"nko,ni->nkoi\""),
    (lambda: Contraction("bco,bi->bcoi", operand=function), "letters begin with n .samples. and k .columns."),
    (lambda: Contraction("nko,ni->nkox", operand=function), "the result has letters that no operand has"),
    (lambda: Contraction("nkoo->nko"), "a letter stands for one axis"),
    (lambda: Contraction(3), "the equation is a text with letters"),
])
def test_what_does_not(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()


@torch.library.custom_op("hbptests::affine", mutates_args=())
def affine(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return input @ weight.t() + bias


@affine.register_fake
def _(input, weight, bias):
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


def _back(ctx, gradient):
    x, weight = ctx.saved_tensors
    rows = gradient.flatten(0, -2)
    return gradient @ weight, rows.t() @ x.flatten(0, -2), rows.sum(0)


affine.register_autograd(_back, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:2]))

AFFINE = """
from hbpcompiler.rule import *
RULE = Rule(["hbptests.affine"], ZERO, forward=lambda op: op.input @ op.weight.t() + op.bias,
            jac_t={"input": lambda op, columns: columns @ op.weight},
            params=lambda op: {"weight": Contraction("nko,ni->nkoi", operand=lambda op: op.input),
                               "bias": Contraction("nko->nko")})
"""


class Affine(nn.Linear):
    def forward(self, x):
        return torch.ops.hbptests.affine(x, self.weight, self.bias)


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = Affine(2, 3), Affine(6, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x.view(-1, 2, 2))).flatten(1))


def of_affine(tmp_path, text):
    path = tmp_path / "rule.py"
    path.write_text(text)
    torch.manual_seed(0)
    model, X, y = Positions().double(), torch.randn(5, 4, dtype=torch.float64), torch.arange(5) % 3
    compiled = hbp.compile(model, quantities=["grad", "batch_grad", "diag_ggn", "diag_h"], rules=[path])
    agree(compiled(X, y), model, nn.CrossEntropyLoss(), [X], y)
    return compiled


def test_a_contraction_of_other_axes_leaves_that_use_to_torch(tmp_path):
    """The rule serves [N, features]; at [N, positions, features] its equation has too few letters."""
    assert "derived_affine" in of_affine(tmp_path, AFFINE).code


@few(2, "further cases of one kind")
@pytest.mark.parametrize(("old", "new", "words"), [
    ("op.input)", "None)", r"speaks of an operand, \"ni\": give it one"),
    ("op.input)", "op.input.unsqueeze(1))", r"says \"ni\" of what is \[2, 1, 6\] here.*a letter for each axis"),
    ("op.input)", "op.input[:, :2])", r"gives \[2, 3, 3, 2\] of 2 samples and 3 columns, .* parameter's \[3, 6\]"),
    ("nko,ni", "nko,nj", "params fails at line 5: ValueError: .*the result has letters that no operand has"),
    ('Contraction("nko->nko")', '"nko->nko"', r"params must return a dict \{argument: Contraction"),
    ("op.input),", "op.input, kernel=lambda op, g: g),", r"kernel of 'weight' must return a tensor of shape \[3, 6\]"),
])
def test_a_contraction_that_does_not_fit(tmp_path, old, new, words):
    assert old in AFFINE
    with pytest.raises(hbp.errors.RuleError, match=rf"(?s)(?=.*rule\.py).*{words}"):
        of_affine(tmp_path, AFFINE.replace(old, new))
