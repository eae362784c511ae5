"""What `check_rule` says of rules that break the contract."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from hbpcompiler.elementwise import attribute, elementwise, sympy, x
from hbpcompiler.errors import RuleError
from hbpcompiler.rule import ZERO, Case, Contraction, Diagonal, Factor, LossRule, ModuleRule, Op, Rule
from hbpcompiler.rule.decomposition import Decomposition
from hbpcompiler.rule.registry import builtin
from hbpcompiler.rule.rule_files import load
from hbpcompiler.testing import check_rule

SQUARE = Rule(
    ["aten.square"], forward=lambda op: op.self * op.self, jac_t={"self": lambda op, c: c * (2 * op.self).unsqueeze(1)},
    backward={"self": lambda op, g: g * 2 * op.self}, residual=Diagonal(lambda op, g: 2 * g),
    cases=[Case({"self": (4,)})])


LINEAR = builtin().find("aten.linear", "")


def in_place(op):
    op.self.mul_(1)
    return op.self * op.self


def some(op, gradient, numbers):
    gradient.neg_().neg_()
    return {"self": torch.diag_embed(gradient.abs().mul(2).sqrt())[:, numbers]}, gradient.sign()[:, numbers]


@pytest.mark.parametrize(("fields", "words"), [
    ({"forward": in_place}, "forward changes op.self in place"),
    ({"jac_t": {"self": lambda op, c: c.mul_(2) * op.self.unsqueeze(1)}}, "jac_t of 'self' changes the columns"),
    ({"jac_t": {"self": lambda op, c: c * op.self.mul_(2).unsqueeze(1)}}, "jac_t of 'self' changes op.self"),
    ({"backward": {"self": lambda op, g: g.mul_(2) * op.self}}, "backward of 'self' changes the gradient"),
    ({"residual": Diagonal(lambda op, g: g.mul_(2))}, "diagonal of residual changes the gradient"),
    ({"residual": lambda op: Diagonal(lambda op, g: 2 * g.mul_(1))}, "diagonal of residual changes the gradient"),
    ({"residual": Factor(lambda op: 4, lambda op, g: some(op, g.clone(), slice(None)), some)},
     "some of residual changes the gradient"),
])
def test_a_function_that_changes_what_it_is_given(fields, words):
    check_rule(SQUARE)
    with pytest.raises(AssertionError, match=rf"aten.square .*{words}.*make a new tensor"):
        check_rule(replace(SQUARE, **fields))


def test_a_loss_that_changes_what_it_is_given():
    rule = builtin().find("aten.mse_loss", "")
    assert isinstance(rule, LossRule)

    def gradient(op):
        return rule.gradient(op) + 0 * op.target.add_(0)

    with pytest.raises(AssertionError, match=r"gradient changes op.target in place"):
        check_rule(replace(rule, gradient=gradient))


# -- what is no rule, and cases that do not fit ----------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "words"), [
    (ModuleRule(nn.Linear, lambda module, x: x), "takes a Rule, a LossRule or a Decomposition, not a ModuleRule: what"),
    (Decomposition(["aten.square"], lambda self: self), "the Decomposition for aten.square has no cases: give it"),
    (replace(SQUARE, cases=[]), "the Rule for aten.square has no cases: give it"),
    (replace(SQUARE, cases=[Case({"self": (4,)}, batched=("input",))]),
     "the case speaks of 'input', and the operation has self"),
    (replace(SQUARE, cases=[Case({"self": (4,)}, batched=())]),
     r"of 3 samples the operation makes \[4\], without a sample axis.*tensors are self \[4\], as batched=\(\)"),
    (replace(LINEAR, cases=[Case({"input": (3,), "weight": (2, 3)}, batched=("input", "weight"))]),
     r"the operation itself fails: Runtime.*are input \[N, 3\], weight \[N, 2, 3\], as batched=\('input', "),
    (replace(SQUARE, jac_t={"self": lambda op, c: c[..., :2] * op.self}),
     r"jac_t of 'self' fails: RuntimeError: .* \(the case's tensors are self \[N, 4\], as"),
    (replace(SQUARE, jac_t={"self": lambda op, c: c * (2 * op.self).unsqueeze(1) / 0}, backward={}),
     r"jac_t of self: (-?inf|nan) at \[0, 0, 0\], not "),
    (replace(SQUARE, operations=["aten.sqare"]), "torch has no operation aten.sqare"),
    (replace(SQUARE, cases=[Case({"slf": (4,)})]), "the case speaks of 'slf', and the operation has self"),
    (replace(SQUARE, cases=[Case({"self": (4,)}, {"alpha": 1.0})]), "the case speaks of 'alpha'"),
    (Rule(["aten.add.Tensor"], ZERO, jac_t={"self": lambda op, c: c}, cases=[Case({"self": (4,)})]),
     "the case says nothing of 'other', which has no default"),
    (replace(SQUARE, jac_t={}, backward={}), "the rule says no way back"),
    (replace(SQUARE, jac_t={"self": lambda op, c: 0.5}), "jac_t of self: 0.5, which is no tensor"),
    (replace(SQUARE, jac_t={"self": lambda op, c: c * op.other}), "jac_t of 'self' fails: AttributeError"),
    (replace(LINEAR, params=lambda op: {"weight": Contraction("nko,ni->nkoi", operand=lambda op: op.weight[0])}),
     r"contraction of weight: 'nko,ni->nkoi' does not fit columns \[3, 2, .*and an operand \["),
    (replace(SQUARE, residual=Diagonal(lambda op, g: None)), "diagonal must be a tensor of its input's shape"),
])
def test_what_is_wrong_is_said(rule, words):
    with pytest.raises(AssertionError, match=words):
        check_rule(rule)


@torch.library.custom_op("hbptests::distance", mutates_args=())
def distance(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).square().mean()


def test_an_argument_that_the_result_would_hide(tmp_path):
    """op.output would be the loss itself."""
    words = "hbptests.distance has an argument 'output', and op.output is the operation's result"
    rule = LossRule(["hbptests.distance"], ZERO, gradient=lambda op: op.output - op.target, reduction=lambda op: "mean",
                    cases=[Case({"output": (4,), "target": (4,)}, batched=("output", "target"))])
    with pytest.raises(AssertionError, match=words):
        check_rule(rule)
    (tmp_path / "distance_rule.py").write_text(
        "from hbpcompiler.rule import ZERO, LossRule\n"
        "R = LossRule(['hbptests.distance'], ZERO, gradient=lambda op: op.output, reduction=lambda op: 'mean')\n")
    with pytest.raises(RuleError, match=words):
        load(tmp_path / "distance_rule.py")


@pytest.mark.parametrize(("operation", "words"), [
    ("aten.sigmiod", "'aten.sigmiod.*aten.sigmoid.*' in doubts: torch has no such operation"),
    ("aten.sigmoid.default", "'aten.sigmoid.default' in doubts: operations are named without overload"),
    ("torch.sigmoid", "torch has no operation torch.sigmoid"),
])
def test_doubts_that_no_model_would_raise(operation, words):
    rule = LossRule(["aten.mse_loss"], Diagonal(lambda op: 2 * (op.self * 0 + 1) / op.self[0].numel()),
                    gradient=lambda op: 2 * (op.self - op.target) / op.self[0].numel(), reduction=lambda op: "mean",
                    cases=[Case({"self": (4,), "target": (4,)})])
    check_rule(rule)
    with pytest.raises(AssertionError, match=words):
        check_rule(replace(rule, doubts={operation: "it is not meant"}))
    with pytest.raises(TypeError, match="doubts must be a dict"):
        replace(rule, doubts={"aten.sigmoid": 3})


def test_a_text_in_the_place_of_names():
    with pytest.raises(TypeError, match=r"batched must be a tuple of names, \('self',\), not 'self'"):
        Case({"self": (4,)}, batched="self")


# -- decompositions --------------------------------------------------------------------------------------------------

CASES = [Case({"self": (4,)})]


@pytest.mark.parametrize(("made", "words"), [
    (Decomposition(["aten.sigmoid"], lambda self: torch.tanh(self / 2) / 2 + 0.5, CASES), None),
    (Decomposition(["aten.sigmoid"], lambda self: 1 / (1 + torch.exp(-self)), CASES),
     "at values up to 1500: function: derivative in self: nan at"),
    (Decomposition(["aten.abs"], lambda self: (self * self).sqrt(), CASES),
     "with zeros among the values: function: derivative in self: nan at"),
    (Decomposition(["aten.abs"], lambda self: torch.where(self == 0, 1.0, self.abs()), CASES),
     "with zeros among the values: function: value: off by 1"),
    (Decomposition(["aten.square"], lambda self: self.view(-1).square().view(self.shape), CASES),
     "of tensors that are not contiguous: function fails: RuntimeError: view size"),
    (Decomposition(["aten.sigmoid"], lambda self: 1 / (1 + torch.exp(self)), CASES), "function: value: off by"),
    (Decomposition(["aten.sigmoid"], lambda self: torch.sigmoid(self.detach()), CASES),
     "function: derivative in self: off by"),
    (Decomposition(["aten.sigmoid"], lambda self: self.detach().sigmoid() + (
        self - self.detach()) * (self.sigmoid() * (1 - self.sigmoid())).detach(), CASES),
     "function: second derivative in self: off by"),
    (Decomposition(["aten.sigmoid"], lambda self: torch.sigmoid(self.detach()), CASES, curved=torch.sigmoid),
     "function: derivative in self: off by"),
    (Decomposition(["aten.sigmoid"], torch.sigmoid, CASES, curved=torch.tanh), "curved: value: off by"),
    (Decomposition(["aten.sigmoid"], lambda x, y: x, CASES), "function fails: TypeError"),
    (Decomposition(["aten.sigmoid"], lambda self: (torch.sigmoid(self),), CASES),
     "gives a tuple, and the operation has one result"),
    (Decomposition(["aten.sigmoid"], lambda self: torch.sigmoid(self) if self.sum() > -1e9 else self, CASES),
     "asks for the values of tensors .*use torch.where"),
    (Decomposition(["aten.sigmoid"], lambda self: torch.sigmoid(self * torch.ones(1, dtype=torch.float64)), CASES),
     "is of torch.float64 in single precision, and the operation of torch.float32"),
    (Decomposition(["aten.sub.Tensor"], lambda self, other, *, alpha=1: self - other,
                   [Case({"self": (4,), "other": (4,)}, {"alpha": 2}, ("self", "other"))]), "function: value: off by"),
    (Decomposition(["aten.sub.Tensor"], lambda self, other, *, alpha=1: self + -alpha * other,
                   [Case({"self": (4,), "other": (4,)}, {"alpha": by}, ("self", "other")) for by in (1, 2)]), None),
])
def test_a_decomposition(made, words):
    """Value and both derivatives: the last two have an argument that torch passes by its name."""
    if words is None:
        check_rule(made)
        return
    with pytest.raises(AssertionError, match=f"{made.operations[0]} .*{words}"):
        check_rule(made)


@pytest.mark.parametrize(("axis", "words"), [(0, "of 5 samples"), (1, "of 4 columns")])
def test_a_rule_that_is_wrong_for_more(axis, words):
    def jac_t(op, columns):
        right = columns * (2 * op.self).unsqueeze(1)
        return right if columns.shape[axis] <= (3, 2)[axis] else 2 * right

    with pytest.raises(AssertionError, match=words):
        check_rule(replace(SQUARE, jac_t={"self": jac_t}, backward={}))


# -- formulas --------------------------------------------------------------------------------------------------------


@torch.library.custom_op("hbptests::bent", mutates_args=())
def bent(self: torch.Tensor, index: float, single: float) -> torch.Tensor:
    return index * self + single * self.square()


@torch.library.custom_op("hbptests::slow_sine", mutates_args=())
def slow_sine(self: torch.Tensor) -> torch.Tensor:
    return (self * 0.1).sin()


@torch.library.custom_op("hbptests::above", mutates_args=())
def above(self: torch.Tensor) -> torch.Tensor:
    return self.clamp(min=0)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])
    ctx.given = inputs[1:]


bent.register_autograd(lambda ctx, g: (g * (ctx.given[0] + 2 * ctx.given[1] * ctx.saved_tensors[0]), None, None),
                       setup_context=_keep)
slow_sine.register_autograd(lambda ctx, g: g * 0.1 * (ctx.saved_tensors[0] * 0.1).cos(), setup_context=_keep)
above.register_autograd(lambda ctx, g: g * (ctx.saved_tensors[0] > 0), setup_context=_keep)


@pytest.mark.parametrize("rule", [
    elementwise("hbptests.bent", attribute("index") * x + attribute("single") * x**2,
                cases=[Case({"self": (4,)}, {"index": 0.3, "single": 0.7})]),
    elementwise("hbptests.slow_sine", sympy.sin(x / 10)),
    elementwise("hbptests.slow_sine", "sin(x / 10)"),
    elementwise("hbptests.slow_sine", sympy.sin(sympy.Symbol("x") / 10)),
    elementwise("hbptests.above", x * sympy.Heaviside(x, 0)),
    elementwise("aten.sigmoid", "sigmoid(x)"),
], ids=["names that Op has", "rounding", "a text", "another x", "a step", "a function in a text"])
def test_formulas(rule):
    check_rule(rule)


def test_the_maximum_of_two():
    values = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    for formula, slope in ((sympy.Max(x, 0), [0, 0.5, 1]), (sympy.Min(x, 0), [1, 0.5, 0])):
        rule = elementwise("hbptests.above", formula)
        found = rule.derivative(Op({"self": values}, {}, {"self": ()}))
        assert torch.equal(found, torch.tensor(slope, dtype=torch.float64))
        assert rule.residual_of(Op({"self": values}, {}, {"self": ()})) is ZERO


@pytest.mark.parametrize(("formula", "words"), [
    (sympy.besselj(0, x), "no torch function is known for besselj in .*first= and second="),
    (attribute("alpha") * x, "the formula reads 'alpha', and this operation has no argument 'alpha'"),
    ("x +", "is no formula that sympy can read"),
    (x > 0, "is no formula but a StrictGreaterThan"),
])
def test_no_formulas(formula, words):
    with pytest.raises(AssertionError, match=words):
        check_rule(elementwise("hbptests.slow_sine", formula))


def test_no_formula_and_one_derivative():
    with pytest.raises(TypeError, match="without a formula both derivatives have to be stated"):
        elementwise("hbptests.slow_sine", None, first=x)


# -- lists of tensors ------------------------------------------------------------------------------------------------


@torch.library.custom_op("hbptests::steep", mutates_args=())
def steep(self: torch.Tensor, alpha: float = 1.0, doubled: bool = False, times: int = 1) -> torch.Tensor:
    return torch.tanh(alpha * times * self) * (2 if doubled else 1)


def steep_backward(ctx, g):
    alpha, doubled, times = ctx.given
    slope = alpha * times * (1 - torch.tanh(alpha * times * ctx.saved_tensors[0]) ** 2) * (2 if doubled else 1)
    return g * slope, None, None, None


def keep(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])
    ctx.given = inputs[1:]


steep.register_fake(lambda self, alpha=1.0, doubled=False, times=1: torch.empty_like(self))
steep.register_autograd(steep_backward, setup_context=keep)


@pytest.mark.parametrize("forgotten", ["", "alpha", "doubled", "times"])
def test_an_attribute_that_is_forgotten(forgotten):
    """The rule has no cases for it: a second derivative without its square, a factor, another factor."""
    alpha, doubled, times = (attribute(name) for name in ("alpha", "doubled", "times"))
    steepness, factor = alpha * times, 1 + doubled
    slope = 1 - sympy.tanh(steepness * x) ** 2
    bend = -2 * sympy.tanh(steepness * x) * slope * steepness**2 * factor
    short = {"": bend, "alpha": bend / alpha, "doubled": bend / factor, "times": bend / times}[forgotten]
    rule = elementwise("hbptests.steep", factor * sympy.tanh(steepness * x), first=factor * steepness * slope,
                       second=short)
    if not forgotten:
        check_rule(rule)
        return
    with pytest.raises(AssertionError, match=rf"{forgotten}'.*residual"):
        check_rule(rule)


@torch.library.custom_op("hbptests::gated", mutates_args=())
def gated(self: torch.Tensor, beta: float = 0.7, E: float = 0.3) -> torch.Tensor:
    return self * torch.tanh(beta * self) + E * self


def gated_backward(ctx, g):
    (x,), (beta, shift) = ctx.saved_tensors, ctx.given
    slope = torch.tanh(beta * x)
    return g * (slope + x * beta * (1 - slope**2) + shift), None, None


gated.register_fake(lambda self, beta=0.7, E=0.3: torch.empty_like(self))
gated.register_autograd(gated_backward, setup_context=keep)


def test_attributes_in_a_text_come_before_what_sympy_calls_so():
    """sympy has a function beta and a number E."""
    check_rule(elementwise("hbptests.gated", "x * tanh(beta * x) + E * x",
                           cases=[Case({"self": (4,)}, {"beta": 2.0, "E": -1.5})]))


@torch.library.custom_op("hbptests::squares", mutates_args=())
def squares(tensors: list[torch.Tensor]) -> torch.Tensor:
    return sum(tensor * tensor for tensor in tensors)


squares.register_autograd(lambda ctx, g: [2 * g * tensor for tensor in ctx.saved_tensors],
                          setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[0]))


def of_squares(op, gradient):
    own = torch.diag_embed((2 * gradient.abs()).sqrt())
    signs = torch.where(gradient < 0, -1.0, 1.0).type_as(gradient)
    several = len(op.shape("tensors"))
    return {f"tensors.{i}": torch.cat([own if i == j else own * 0 for j in range(several)], 1)
            for i in range(several)}, torch.cat([signs] * several, 1)


def test_a_factor_of_a_list():
    rule = Rule(["hbptests.squares"], Factor(lambda op: sum(shape[0] for shape in op.shape("tensors")), of_squares),
                jac_t={"tensors": lambda op, c, i: c * 2 * op.tensors[i].unsqueeze(1)},
                forward=lambda op: sum(tensor * tensor for tensor in op.tensors),
                cases=[Case({"tensors": [(4,), (4,)]}, batched=("tensors",))])
    check_rule(rule)
    with pytest.raises(AssertionError, match="residual: off by"):
        check_rule(replace(rule, residual=ZERO))
