"""The vocabulary of rules: how large it is, and what is derived that rules need not say."""

from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.derive.identity import matrix_of
from hbpcompiler.compiler.routes.rows import rows_of
from hbpcompiler.elementwise import elementwise, x
from hbpcompiler.rule import (
    NO_DERIVATIVE,
    ZERO,
    Case,
    Contraction,
    LossRule,
    ModuleRule,
    Op,
    Rule,
    Selection,
    Structure,
    Window,
    flat_positions,
    pad_axes,
    patches,
)
from hbpcompiler.rule.decomposition import Decomposition
from hbpcompiler.rule.registry import builtin, with_rules
from hbpcompiler.rule.rule import Stated
from hbpcompiler.testing import check_rule

NAMES = 51
KINDS = (Stated, Rule, LossRule, Contraction, Case, Window, Selection, ModuleRule, Decomposition)


def test_the_vocabulary_stays_small():
    assert sum(map(len, map(own_names, KINDS))) <= NAMES
    assert {"operations", "residual", "cases"} < own_names(Stated)
    assert own_names(Rule) == {field.name for field in fields(Rule)} - own_names(Stated)


def own_names(kind):
    """The fields that a class says itself: what two kinds of rules inherit is one name to know."""
    return {field.name for field in fields(kind) if field.name in kind.__annotations__}


RULE = """
from hbpcompiler.rule import ZERO, Rule
RULE = Rule(["nowhere_at_all.turn"], ZERO, jac_t={"self": lambda op, columns: columns})
"""
APART = """
from hbpcompiler.rule.decomposition import Decomposition
APART = Decomposition(["nowhere_at_all.turn"], lambda x: x)
"""


def written(folder, **texts):
    folder.mkdir()
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    return [folder / f"{name}.py" for name in texts]


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_a_decomposition_stands_beside_a_rule(tmp_path, names):
    found = with_rules(written(tmp_path / "one", **dict(zip(names, (RULE, APART), strict=True))))
    assert found.find("nowhere_at_all.turn", "") is not None
    assert found.decomposition("nowhere_at_all.turn", "") is not None
    assert found.files["nowhere_at_all.turn"].endswith(f"{names[0]}.py")  # the rule's


@pytest.mark.parametrize(("first", "second"), [(RULE, APART), (APART, RULE)])
def test_elsewhere_it_does_not(tmp_path, first, second):
    files = [*written(tmp_path / "one", a=first), *written(tmp_path / "two", b=second)]
    with pytest.raises(hbp.errors.RuleError, match=r"(?s)Two rules.*a\.py and .*b\.py"):
        with_rules(files)


def test_a_rule_comes_before_a_decomposition_of_ours(tmp_path):
    text = RULE.replace("nowhere_at_all.turn", "aten.soft_margin_loss")
    found = with_rules(written(tmp_path / "one", a=text))
    assert found.files["aten.soft_margin_loss"].endswith("a.py")
    with pytest.raises(hbp.errors.RuleError, match=r"(?s)Two rules.*a\.py"):
        with_rules(written(tmp_path / "other", a=RULE.replace("nowhere_at_all.turn", "aten.tanh")))


def test_two_of_a_kind_are_too_many(tmp_path):
    for number, text in enumerate((RULE, APART)):
        with pytest.raises(hbp.errors.RuleError, match=r"(?s)Two rules.*a\.py and .*b\.py"):
            with_rules(written(tmp_path / str(number), a=text, b=text))


def test_that_no_derivative_passes_has_to_be_said():
    assert builtin().find("aten.detach", "default").jac_t is NO_DERIVATIVE
    assert Rule(["aten.dropout"], ZERO).jac_t is not NO_DERIVATIVE


# -- columns that cross an operation -------------------------------------------------------------------------------


def test_an_elementwise_rule_needs_no_jac_t():
    rule = Rule(["aten.dropout"], ZERO, structure=Structure.ELEMENTWISE, derivative=lambda op: op.mask)
    (name,) = rule.jac_t
    assert name == "input"
    mask, columns = torch.randn(2, 3), torch.randn(2, 4, 3)
    assert torch.equal(rule.jac_t[name](Op({"mask": mask}, {}, {}), columns), columns * mask[:, None])


def test_a_derivative_that_is_there_is_no_constant():
    rule = Rule(["aten.tanh"], ZERO, jac_t=NO_DERIVATIVE, forward=lambda op: op.self.tanh(),
                structure=Structure.SELECTION, cases=[Case({"self": (2, 3)})])
    with pytest.raises(AssertionError, match="a derivative with respect to self, where there is none"):
        check_rule(rule)


def test_of_an_operation_without_a_formula_there_is_none():
    @torch.library.custom_op("hbp_tests::in_quarters", mutates_args=())
    def in_quarters(x: torch.Tensor) -> torch.Tensor:
        return (x * 4).round() / 4

    check_rule(Rule(["hbp_tests.in_quarters"], ZERO, jac_t=NO_DERIVATIVE, structure=Structure.SELECTION,
                    forward=lambda op: (op.x * 4).round() / 4, cases=[Case({"x": (4,)}, batched=("x",))]))


def test_of_an_unknown_operation_it_does():
    with pytest.raises(TypeError, match="jac_t"):
        Rule(["nowhere.dropout"], ZERO, structure=Structure.ELEMENTWISE, derivative=lambda op: op.mask)


def test_a_product_with_unit_columns_is_the_matrix():
    weight = torch.randn(3, 5)
    assert matrix_of(lambda columns: columns @ weight, (3,)) is weight
    assert matrix_of(lambda columns: 1 * (columns @ weight), (3,)) is not weight
    assert matrix_of(lambda columns: columns @ weight, (2, 3)) is None  # positions: no identity matrix
    assert matrix_of(lambda columns: columns.reshape(1, 3), (3,)) is None
    assert matrix_of(lambda columns: columns, (3,)) is None
    assert matrix_of(lambda columns: columns * weight, (3,)) is None


class Written(nn.Module):
    """A layer as a product, where columns are born of a diagonal."""

    def __init__(self, added):
        super().__init__()
        self.first, self.head, self.added = nn.Linear(3, 4), nn.Linear(5, 2), added
        self.weight, self.bias = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(5)) if added else None

    def forward(self, x):
        x = torch.sigmoid(self.first(x))
        return self.head(torch.sigmoid(torch.addmm(self.bias, x, self.weight) if self.added else x @ self.weight))


@pytest.mark.parametrize("added", [True, False])
def test_no_identity_matrix_is_multiplied(added):
    torch.manual_seed(0)
    model, x, y = Written(added).double(), torch.randn(3, 3, dtype=torch.float64), torch.tensor([0, 1, 1])
    compiled = hbp.compile(model, quantities=["diag_h"], example_inputs=(x, y))
    assert "torch.eye" not in compiled.code
    found = compiled(x, y).diag_h["first.weight"]
    parameters = dict(model.named_parameters())

    def loss(weight):
        output = torch.func.functional_call(model, {**parameters, "first.weight": weight}, (x,))
        return F.cross_entropy(output, y)

    weight = parameters["first.weight"].detach()
    hessian = torch.autograd.functional.hessian(loss, weight).reshape(weight.numel(), -1)
    assert torch.allclose(found.flatten(), hessian.diagonal(), rtol=1e-9, atol=1e-12)


# -- parameters ------------------------------------------------------------------------------------------------------

WINDOW = Window((2, 2), (1, 1), (1, 1), (1, 0))


def convolved(operand):
    """Rows of a convolution of [N, 3, 4, 4] with that operand."""
    shapes = {"input": (3, 4, 4), "output": (5, 4, 3)}
    op = Op({"input": torch.randn(2, 3, 4, 4)}, {}, shapes, batched=frozenset(["input"]))
    return op, rows_of(WINDOW, Contraction("nkop,nip->nkoi", operand=operand), op)


def padded(op):
    return pad_axes(op.input, (1, 0), (0, 0))


def test_rows_are_found_from_the_window():
    def operand(op):
        return patches(padded(op), (2, 2), (1, 1), (1, 1))

    op, rows = convolved(operand)
    assert rows is not None
    windows = operand(op).unflatten(2, (4, -1)).unflatten(1, (3, 2, 2))  # [n, channel, a, b, y, q]
    found = rows.of(op).unflatten(1, (3, 2))  # [n, channel, b, row, q]
    for place in (0, 1):
        assert torch.equal(found[:, :, :, place : place + 4], windows[:, :, place])


@pytest.mark.parametrize("operand", [
    lambda op: patches(padded(op), (2, 2), (1, 1), (1, 1)).unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2),
    lambda op: F.unfold(padded(op), 2).unflatten(1, (3, -1)).flip(1).flatten(1, 2),
    lambda op: 2 * patches(padded(op), (2, 2), (1, 1), (1, 1)),
])
def test_another_operand_is_not_taken_for_patches(operand):
    assert convolved(operand)[1] is None


def test_flat_positions():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(flat_positions(x, 2), x.flatten(2))
    assert flat_positions(x, 1) is x


# -- losses ----------------------------------------------------------------------------------------------------------


def test_a_loss_reads_its_operations_first_tensor():
    found = {operation: rule.input for operation, rule in builtin() if isinstance(rule, LossRule)}
    assert found["aten.poisson_nll_loss"] == "input"
    assert found["aten.mse_loss"] == "self"


@pytest.mark.parametrize("order", ["convex", ("rising",)])
def test_an_unknown_order_is_an_error(order):
    with pytest.raises(TypeError, match="order"):
        Rule(["aten.exp"], ZERO, order=order)


def test_an_argument_that_the_operation_does_not_have():
    with pytest.raises(AssertionError, match=r"aten\.linear has no argument 'self'; it has input, weight, bias"):
        check_rule(elementwise("aten.linear", x))
