"""Models and losses that cannot be compiled, each with an error that says what to do."""

import functools
import inspect
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from tests.custom_op import Centred, Knot
from tests.selection import few
from tests.test_errors import batch, mlp, refused


@pytest.mark.parametrize(("model", "word"), [
    (torch.tanh, "builtin_function"), (nn.Linear, "Linear(...)"), (None, "NoneType")])
def test_model_is_no_module(model, word):
    with refused(hbp.CompileError, TypeError, "torch.nn.Module", word):
        hbp.compile(model, quantities=["grad"])


def test_nothing_trainable():
    frozen = mlp().requires_grad_(False)
    for model in (frozen, nn.Sequential(nn.Flatten(), nn.ReLU())):
        with refused(hbp.CompileError, ValueError, "nothing trainable", model=model):
            hbp.compile(model, quantities=["grad"])


def test_nothing_trainable_any_more():
    model, (X, y) = mlp(), batch()
    compiled = hbp.compile(model, quantities=["grad"], example_inputs=(X, y))
    model.requires_grad_(False)
    with refused(hbp.CompileError, ValueError, "nothing trainable", model=model):
        compiled(X, y)


def test_loss_is_not_callable():
    model = mlp()
    with refused(hbp.CompileError, TypeError, "loss", "str", model=model):
        hbp.compile(model, "mse", quantities=["grad"])


def test_loss_with_reduction_none():
    model = mlp()
    with refused(hbp.CompileError, ValueError, "'none'", "mean", model=model):
        hbp.compile(model, nn.CrossEntropyLoss(reduction="none"), quantities=["grad"])


def test_loss_function_with_reduction_none():
    model, (X, y) = mlp(), batch()
    loss = functools.partial(F.cross_entropy, reduction="none")
    with refused(hbp.CompileError, ValueError, "[N]", "reduction", model=model):
        hbp.compile(model, loss, quantities=["grad"], example_inputs=(X, y))


def test_batch_norm_in_train_mode():
    model, (X, y) = mlp().train(), batch()
    with refused(hbp.UnsupportedOpError, NotImplementedError, "'1' (BatchNorm1d)", "train mode", "eval()", model=model):
        hbp.compile(model, quantities=["grad"], example_inputs=(X, y))


class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


class ToNumber(nn.Module):
    def forward(self, x):
        return x * x.max().item()


def line_of(module, text):
    lines, first = inspect.getsourcelines(type(module))
    return first + next(number for number, line in enumerate(lines) if text in line)


def test_control_flow_that_depends_on_data(capfd):
    model, (X, y) = nn.Sequential(nn.Linear(4, 3), nn.Sequential(Branch())), batch()
    where = f"test_errors_of_models.py:{line_of(Branch(), 'if x.sum()')}"
    with refused(hbp.CompileError, ValueError, "'1.0' (Branch)", where, "if x.sum() > 0", "torch.where", model=model):
        hbp.compile(model, quantities=["grad"], example_inputs=(X, y))
    assert capfd.readouterr().err == ""


def test_a_tensor_becomes_a_number():
    model, (X, y) = nn.Sequential(nn.Linear(4, 3), ToNumber()), batch()
    where = f"test_errors_of_models.py:{line_of(ToNumber(), 'item')}"
    with refused(hbp.CompileError, (ValueError, NotImplementedError), "'1' (ToNumber)", where, model=model):
        hbp.compile(model, quantities=["grad"], example_inputs=(X, y))


def test_model_returns_two_tensors():
    class Two(nn.Linear):
        def forward(self, x):
            return x, super().forward(x)

    model, (X, y) = Two(4, 3), batch()
    with refused(hbp.CompileError, ValueError, "y does not fit the loss", "tuple of [N, 4]", "loss(output[0], y)",
                 model=model):
        hbp.compile(model, quantities=["grad"])(X, y)


@dataclass
class Found:
    hidden: torch.Tensor
    logits: torch.Tensor


@dataclass
class Scored:
    mean: torch.Tensor
    name: str


@pytest.mark.parametrize(("returned", "part"), [
    (lambda z: Found(z * 2, z), "output.logits"), (lambda z: Scored(z, "mean"), "output.mean"),
    (lambda z: {"score": z}, "output['score']"), (lambda z: {"loss": z.sum(), "logits": z}, "output['logits']"),
    (lambda z: (z, z), "output[0]"),
])  # fmt: skip
def test_the_loss_is_told_how_to_read_an_output(returned, part):
    class Several(nn.Linear):
        def forward(self, x):
            return returned(super().forward(x))

    model, (X, y) = Several(4, 3), batch()
    with pytest.raises(hbp.InputError) as caught:
        hbp.compile(model, quantities=["grad"])(X, y)
    assert f"pass lambda output, y: loss({part}, y), say" in str(caught.value)
    hbp.compile(model, lambda output, y: F.cross_entropy(eval(part), y), quantities=["grad"])(X, y)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("pick", [torch.max, torch.median])
def test_a_loss_that_picks_a_sample(pick):
    def hardest(output, target):
        return pick(F.cross_entropy(output, target, reduction="none"))

    named = {"max": "amax", "median": "nanmedian"}[pick.__name__]  # as which they are taken
    model, (X, y), words = nn.Linear(4, 3), batch(), [f"aten.{named} in the loss", "no sum of their shares"]
    with refused(hbp.UnsupportedOpError, NotImplementedError, *words, model=model) as caught:
        hbp.compile(model, hardest, ["grad"])(X, y)
    assert "rule file" not in str(caught.value)


def test_a_loss_that_needs_more_samples_than_there_are():
    def hardest(output, target):
        return F.cross_entropy(output, target, reduction="none").topk(7)[0].mean()

    model, (X, y) = nn.Linear(4, 3), batch()
    words = ["y is [6]", "Tried on two samples: RuntimeError: selected index k"]
    with refused(hbp.CompileError, ValueError, *words, model=model):
        hbp.compile(model, hardest, ["grad"])(X, y)


def test_what_needs_more_samples_than_it_is_tried_on():
    """Two are tried, and then all, of which a mask picks enough."""
    def loss(output, target):
        if output[target == 2].numel() == 0:
            raise ValueError("no sample of class 2")
        return F.cross_entropy(output, target)

    model, X, y = nn.Linear(4, 3), torch.randn(3, 4), torch.tensor([0, 1, 2])
    assert hbp.compile(model, loss, ["grad"])(X, y).loss.isclose(loss(model(X), y))


@pytest.mark.parametrize(("loss", "y", "words"), [
    (nn.MSELoss(), torch.randn(6), "pass y.unsqueeze(1)"),
    (nn.BCEWithLogitsLoss(), torch.rand(6), "pass y.unsqueeze(1)"),
    (nn.CrossEntropyLoss(), torch.randn(6), "or give loss=nn.MSELoss() for a regression"),
])
def test_what_to_write_instead(loss, y, words):
    model, X = nn.Linear(4, 2 if isinstance(loss, nn.CrossEntropyLoss) else 1), torch.randn(6, 4)
    with refused(hbp.CompileError, ValueError, words, model=model):
        hbp.compile(model, loss, ["grad"])(X, y)


def test_every_missing_operation_is_named_at_once():
    model, (X, y) = nn.Sequential(nn.Linear(4, 3), Centred(), nn.Sequential(Knot()), nn.Linear(3, 3), Knot()), batch()
    words = ["hbptests.centred in module '1' (Centred)", "mixes the samples", "hbptests.knot in module '2.0' (Knot)",
             "hbptests.knot in module '4' (Knot)", f"custom_op.py:{line_of(Knot(), 'return')}",
             "return torch.ops.hbptests.centred(x)", "centred.py", "knot.py", "rules="]
    with refused(hbp.UnsupportedOpError, NotImplementedError, *words, model=model):
        hbp.compile(model, quantities=["grad"], example_inputs=(X, y))


@pytest.mark.parametrize(("function", "words"), [
    (lambda x: x / x.abs().max(), ["aten.max in", "mixes the samples", "reduce over the axes after the sample axis"]),
    (lambda x: x.roll(1, 0), ["it moves values along the sample axis", "change only the axes after it"]),
    (lambda x: x.flip(0), ["it reverses the sample axis", "change only the axes after it"]),
])  # fmt: skip
def test_what_mixes_samples_is_to_be_written_otherwise(function, words):
    class Between(nn.Module):
        def forward(self, x):
            return function(x)

    model, (X, y) = nn.Sequential(nn.Linear(4, 3), Between()), batch()
    with pytest.raises(hbp.UnsupportedOpError) as caught:
        hbp.compile(model, quantities=["grad"])(X, y)
    assert all(word in str(caught.value) for word in words)
    assert "rule" not in str(caught.value)


def test_a_missing_operation_has_the_name_that_the_user_knows():
    class Zeta(nn.Module):
        def forward(self, x):
            return torch.special.zeta(x.square() + 2, x.square() + 1)

    model, (X, y) = nn.Sequential(nn.Linear(4, 3), Zeta()), batch()
    words = ["aten.special_zeta", "not implemented", "rules/special_zeta.py"]
    with refused(hbp.UnsupportedOpError, NotImplementedError, *words, model=model):
        hbp.compile(model, quantities=["grad"])(X, y)
