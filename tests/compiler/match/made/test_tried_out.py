"""Rules of the user's own that break the contract: a RuleError with the place, before anything is computed."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.made import tried_out
from hbpcompiler.errors import RuleError
from hbpcompiler.reference import reference
from tests.agreement import agree
from tests.custom_op import Swirl
from tests.selection import few

SWIRL = """
from hbpcompiler.rule import *

def slope(op):
    return 1 + (2 * op.self).sin()

def forward(op):
    return op.self + op.self.sin().square()

def jac_t(op, columns):
    return columns * slope(op).unsqueeze(1)

def backward(op, gradient):
    return gradient * slope(op)

def diagonal(op, gradient):
    return gradient * 2 * (2 * op.self).cos()

def count(op):
    return op.shape("self")[0]

def factor(op, gradient):
    bend = diagonal(op, gradient)
    return {"self": torch.diag_embed(bend.abs().sqrt())}, torch.where(bend < 0, -1.0, 1.0).type_as(bend)

RULE = Rule(["hbptests.swirl"], forward=forward, jac_t={"self": jac_t}, backward={"self": backward},
            residual=Diagonal(diagonal), refuse=lambda op: None)
"""
FACTOR = ("residual=Diagonal(diagonal)", "residual=Factor(count, factor)")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), Swirl(), nn.Linear(5, 3)).double()


def compiled(tmp_path, text, model=None, loss=None, y=None, quantities=("grad", "diag_h"), **options):
    path = tmp_path / "rule.py"
    path.write_text(text)
    X = torch.randn(6, 4, dtype=torch.float64)
    y = torch.arange(6) % 3 if y is None else y
    return hbp.compile(model or net(), loss, [*quantities], rules=[path], **options)(X, y), X, y


def changed(text, *pairs):
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("pairs", [(), (FACTOR,), (("* 2 *", "* torch.tensor(2.0) *"),),
                                   (("1 + (2", "torch.tensor(1.0, dtype=torch.float64) + (2"),)])
def test_right_rules(tmp_path, pairs):
    model = net()
    result, X, y = compiled(tmp_path, changed(SWIRL, *pairs), model)
    agree(result, model, nn.CrossEntropyLoss(), [X], y)


COLUMNS = "return columns * slope(op).unsqueeze(1)"


@pytest.mark.parametrize(("pairs", "words"), [
    ([(COLUMNS, "return 0.5")], r"jac_t of 'self' must return a tensor of shape \[2, 3, 5\], not 0.5"),
    ([(COLUMNS, "return None")], r"jac_t of 'self' must return a tensor .*, not None"),
    ([(COLUMNS, "return (columns,)")], r"jac_t of 'self' .* not \(a tensor of shape \[2, 3, 5\]\)"),
    ([(COLUMNS, "return columns.sum(1)")], r"jac_t .*\[2, 3, 5\], not \[2, 5\], of 2 samples and 3 columns"),
    ([(COLUMNS, "return columns.float()")], r"jac_t of 'self' must return a tensor of torch.float64"),
    ([(COLUMNS, "return columns * slope(op)")], r"jac_t of 'self' fails at line 11: RuntimeError: .*broadcast"),
    ([(COLUMNS, "return columns.mul_(2)")], "jac_t of 'self' changes the columns in place"),
    ([(COLUMNS, "return colums")], "jac_t of 'self' fails at line 11: NameError: name 'colums' is not defined"),
    ([(COLUMNS, "return op.other")], "line 11: AttributeError: this operation has no argument 'other'; it has output"),
    ([(COLUMNS, "return torch.ones(1) * columns")], r"line 11: .*device.* op.self.new_ones\(...\)"),
    ([(COLUMNS, "return columns if op.self.dim() == 2 else 0")], "line 11: TraceError.*traced to write code.*dtype"),
    ([(COLUMNS, "return columns if op.self.dtype == torch.float64 else 0")], "line 11: TraceError.*traced to write"),
    ([(COLUMNS, "return columns.reshape(*columns.shape)")], "line 11: TraceError.*traced to write code"),
    ([(COLUMNS, "return columns * len(op.self)")], r"line 11: RuntimeError: 'len'.*traced to write code"),
    ([(COLUMNS, "assert (op.self < 9).all(); return columns")], "line 11: RuntimeError.*no number can be read off"),
    ([(COLUMNS, "r = columns * 0; r[...] = columns; return r")], r"line 11: TypeError.*write torch.where"),
    ([("return gradient * slope(op)", "return gradient.sum(1)")], r"backward of 'self' must .* not \[2\], of 2"),
    ([("return op.self + op", "return op.self.sum(1) #")], r"forward must return .* \[2, 5\], not \[2\]"),
    ([("return op.self + op.self.sin().square()", "return None")], "forward must return a tensor .*, not None"),
    ([("return op.self + op.self.sin().square()", "return op.self, op.self")], "forward must return the result, or"),
    ([("return op.self + op.self.sin().square()", "return op.self, {'k': 2.0}")], "forward saves 2.0 as 'k'"),
    ([("return op.self + op.self.sin().square()", "return op.self, {'self': op.self}")], "forward saves .* argument's"),
    ([("return gradient * 2", "return 0.0 #")], r"diagonal of residual must return .*, not 0.0"),
    ([("return gradient * 2 * (2 * op.self).cos()", "return None")], "diagonal of residual must .*, not None"),
    ([("Diagonal(diagonal)", "lambda op: None")], r"residual must return ZERO, PIECES, Diagonal"),
    ([("Diagonal(diagonal)", "Diagonal(lambda op: op.self)")], "diagonal of residual fails at line 27: TypeError"),
    ([FACTOR, ("return op.shape(\"self\")[0]", "return 3")], r"factor of residual, at 'self', .*\[2, 3, 5\], not"),
    ([FACTOR, ("return op.shape(\"self\")[0]", "return 5.0")], "count of residual must return a whole number, not 5.0"),
    ([FACTOR, ("{\"self\": torch", "{\"input\": torch")], "must have columns at 'self', .* it has 'input'"),
    ([FACTOR, ("return {\"self\": torch.diag_embed(bend.abs().sqrt())},", "return")], "factor of residual must return"),
    ([FACTOR, (".type_as(bend)", ".long()")], "the signs, must return a tensor of torch.float64"),
    ([FACTOR, (".type_as(bend)", ".type_as(bend)[:, 1:]")], r"the signs, must return .*\[2, 5\], not \[2, 4\]"),
    ([("refuse=lambda op: None", "refuse=lambda op: True")], "refuse must return a text that says why, .*, not True"),
    ([("refuse=lambda op: None", "refuse=lambda op: ''")], "refuse must return a text that says why, or None, not ''"),
    ([("refuse=lambda op: None", "refuse=lambda op: 1 / 0")], "refuse fails at line 27: ZeroDivisionError"),
])
def test_wrong_rules(tmp_path, pairs, words):
    with pytest.raises(hbp.errors.RuleError, match=rf"(?s)(?=.*rule\.py)(?=.*hbptests.swirl).*{words}"):
        compiled(tmp_path, changed(SWIRL, *pairs))


def test_a_residual_that_nobody_asks_for_may_be_missing(tmp_path):
    text = changed(SWIRL, ("Diagonal(diagonal)", "Diagonal(lambda op, gradient: 1 / 0)"))
    model = net()
    result, X, y = compiled(tmp_path, text, model, quantities=["grad"])
    agree(result, model, nn.CrossEntropyLoss(), [X], y)


@pytest.mark.parametrize("model", [
    nn.Sequential(Swirl(), nn.Linear(4, 3)).double(),
    nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)).double(),
], ids=["no parameter above", "no rule"])
def test_forward_changes_nothing_anywhere(tmp_path, model):
    text = changed(SWIRL, ("return op.self + op.self.sin().square()", "return op.self.add_(op.self.sin().square())"))
    if isinstance(model, nn.Sequential):
        with pytest.raises(hbp.errors.RuleError, match=r"forward changes op.self in place"):
            compiled(tmp_path, text, model, quantities=["grad"], verify=False)
    else:
        compiled(tmp_path, text, model, quantities=["grad"])


LOSS = """
from hbpcompiler.rule import *

def apart(op):
    return op.input - op.target

def size(op):
    return op.shape("input")[0]

RULE = LossRule(["hbptests.apart"], forward=lambda op: apart(op).square().mean(),
    gradient=lambda op: 2 * apart(op) / size(op),
    residual=Diagonal(lambda op: torch.ones_like(op.input) * 2 / size(op)),
    reduction=lambda op: "mean", each=lambda op: apart(op).square().mean(1), check=lambda op, target: None)
"""


@torch.library.custom_op("hbptests::apart", mutates_args=())
def apart_loss(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (input - target).square().mean()


@apart_loss.register_fake
def _(input, target):
    return input.new_empty(())


apart_loss.register_autograd(
    lambda ctx, g: (g * 2 * (ctx.saved_tensors[0] - ctx.saved_tensors[1]) / ctx.saved_tensors[0].numel(), None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


class Apart(nn.Module):
    def forward(self, output, target):
        return torch.ops.hbptests.apart(output, target)


def of_loss(tmp_path, text, **options):
    return compiled(tmp_path, text, loss=Apart(), y=torch.ones(6, 3, dtype=torch.float64),
                    quantities=["grad", "batch_loss"], **options)


def test_a_right_loss(tmp_path):
    model = net()
    result, X, y = of_loss(tmp_path, LOSS, model=model)
    losses = (model(X) - y).square().mean(1)
    assert torch.allclose(result.batch_loss, losses)
    expected = reference(model, Apart(), (X,), y, "grad")
    assert all(torch.allclose(result.grad[name], value) for name, value in expected.items())


@few(3, "further cases of one kind")
@pytest.mark.parametrize(("old", "new", "words"), [
    (".square().mean(1)", ".square().mean(1, keepdim=True)", r"each .* must return .* \[2\], not \[2, 1\]"),
    (".square().mean(1)", ".square().mean()", r"each \(l_n, one number for each sample\) .* not \[\]"),
    (".square().mean(1)", ".square()", r"each .* \[2\], not \[2, 3\]"),
    ("2 * apart(op) / size(op),\n", "0.5,\n", r"gradient must return a tensor of shape \[2, 3\], not 0.5"),
    ("2 * apart(op) / size(op),\n", "None,\n", "gradient must return .* not None"),
    ('op: "mean"', 'op: "MEAN"', "reduction must return \"mean\", \"sum\" or \"none\", not 'MEAN'"),
    ('op: "mean"', "op: None", "reduction must return .* not None"),
    ("target: None", "target: True", "check must return a text that says what is wrong with the target, or None"),
    ("target: None", "target: 1 / 0", "check fails at line 13: ZeroDivisionError"),
])
def test_wrong_losses(tmp_path, old, new, words):
    with pytest.raises(hbp.errors.RuleError, match=rf"(?s)(?=.*rule\.py)(?=.*hbptests.apart).*{words}"):
        of_loss(tmp_path, changed(LOSS, (old, new)))


def test_ours_are_not_tried_out(monkeypatch):
    monkeypatch.setattr(tried_out, "_Trial", None)
    hbp.compile(nn.Linear(4, 3), quantities=["grad"])(torch.randn(6, 4), torch.arange(6) % 3)


@pytest.mark.parametrize(("function", "words"), [
    (("    return columns * slope(op).unsqueeze(1)", "    return (columns * slope(op).unsqueeze(1)).squeeze()"),
     r"jac_t of 'self' must return a tensor of shape \[1, 1, 5\], not \[5\], of one sample and one column"),
    (("    return gradient * slope(op)", "    return (gradient * slope(op)).squeeze(0)"),
     r"backward of 'self' must return a tensor of shape \[1, 5\], not \[5\], of one sample"),
])
def test_one_sample_or_column(tmp_path, function, words):
    """What squeeze() takes away is right as long as no length is 1."""
    with pytest.raises(RuleError, match=words):
        compiled(tmp_path, changed(SWIRL, function))
