"""Batches and targets that do not fit, the first and later ones."""

import functools

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.selection import few
from tests.test_errors import batch, mlp, refused

CROSS_ENTROPY = [
    (lambda X, y: (X[:, :3], y), ValueError, ["[6, 3]"]),
    (lambda X, y: (torch.cat([X, X], 1), y), ValueError, ["[6, 8]"]),
    (lambda X, y: (X, y[:5]), ValueError, ["X has 6", "y has 5"]),
    (lambda X, y: (X[:0], y[:0]), ValueError, ["X", "[0, 4]", "empty"]),
    (lambda X, y: (X.tolist(), y), TypeError, ["X", "list"]),
    (lambda X, y: (X.numpy(), y), TypeError, ["X", "ndarray"]),
    (lambda X, y: (X, y.tolist()), TypeError, ["y", "list"]),
    (lambda X, y: (X, None), ValueError, ["y is None", "NoneType"]),
    (lambda X, y: (X,), TypeError, ["(X, y)", "1 argument"]),
    (lambda X, y: (torch.tensor(1.0), y), ValueError, ["X has no axes"]),
    (lambda X, y: (X.double(), y), TypeError, ["X", "torch.float64", "torch.float32"]),
    (lambda X, y: (X.half(), y), TypeError, ["X", "torch.float16", "torch.float32"]),
    (lambda X, y: (X.to(torch.complex64), y), ValueError, ["X", "torch.complex64"]),
    (lambda X, y: (X.long(), y), ValueError, ["X", "torch.int64"]),
    (lambda X, y: (X > 0, y), ValueError, ["X", "torch.bool"]),
    (lambda X, y: (X.to("meta"), y), ValueError, ["X", "meta", "cpu"]),
    (lambda X, y: (X, y.to("meta")), ValueError, ["y", "meta", "cpu"]),
    (lambda X, y: (X, y + 3), ValueError, ["y", "between 0 and 2", "3 classes"]),
    (lambda X, y: (X, torch.tensor([0, 1, 2, -7, 0, 1])), ValueError, ["y", "[3] is -7", "3 classes"]),
    (lambda X, y: (X, torch.full((6,), -100)), ValueError, ["y", "-100"]),
    (lambda X, y: (X, y.float()), ValueError, ["y", "torch.float32"]),
    (lambda X, y: (X, y.int()), ValueError, ["y", "torch.int32"]),
    (lambda X, y: (X, y > 0), ValueError, ["y", "torch.bool"]),
    (lambda X, y: (X, y.unsqueeze(1)), ValueError, ["y", "[6, 1]", "classes are [N]: pass y.squeeze(1)"]),
    (lambda X, y: (X, torch.rand(6, 4)), ValueError, ["y", "[6, 4]"]),
    (lambda X, y: (X, -torch.ones(6, 3)), ValueError, ["y", "-1", "loss=nn.MSELoss()"]),
    (lambda X, y: (X, torch.full((6, 3), torch.nan)), ValueError, ["y", "NaN", "[0, 0]"]),
    (lambda X, y: (X, torch.rand(6, 3, dtype=torch.float64)), TypeError, ["y", "torch.float64", "torch.float32"]),
]


TARGETS = [
    (nn.MSELoss(), lambda y: y[:, 0], ValueError, ["[6]", "[N, 3]"]),
    (nn.MSELoss(), lambda y: y[:, :1], ValueError, ["[6, 1]", "[N, 3]"]),
    (nn.HuberLoss(), lambda y: y.long(), ValueError, ["torch.int64"]),
    (nn.MSELoss(), lambda y: y.double(), TypeError, ["torch.float64", "torch.float32"]),
    (nn.HuberLoss(), lambda y: y[:, :2], ValueError, ["[6, 2]", "[N, 3]"]),
    (nn.HuberLoss(), lambda y: y * torch.nan, ValueError, ["NaN"]),
    (nn.BCEWithLogitsLoss(), lambda y: y[:, :1], ValueError, ["[6, 1]", "[N, 3]"]),
    (nn.BCEWithLogitsLoss(), lambda y: y.long(), ValueError, ["torch.int64"]),
    (nn.PoissonNLLLoss(), lambda y: y[:, :1], ValueError, ["[6, 1]", "[N, 3]"]),
    (nn.PoissonNLLLoss(), lambda y: -torch.ones_like(y), ValueError, ["-1", "not negative"]),
]


@functools.cache
def compiled_before(kind):
    """A model and its program, which has seen a good batch."""
    model, (X, y) = mlp(), batch()
    y = y if kind is nn.CrossEntropyLoss else torch.rand(6, 3)
    return model, hbp.compile(model, kind(), quantities=["grad"], example_inputs=(X, y))


@pytest.mark.parametrize(("change", "standard", "words"), CROSS_ENTROPY)
def test_first_batch(change, standard, words):
    model, (X, y) = mlp(), batch()
    compiled, wrong = hbp.compile(model, quantities=["grad"]), change(X, y)
    with refused(hbp.InputError, standard, *words, model=model, tensors=(X, y)):
        compiled(*wrong)


@few(3, "further cases of one kind")
@pytest.mark.parametrize(("change", "standard", "words"), CROSS_ENTROPY)
def test_later_batch(change, standard, words):
    model, compiled = compiled_before(nn.CrossEntropyLoss)
    X, y = batch()
    wrong = change(X, y)
    with refused(hbp.InputError, standard, *words, model=model, tensors=(X, y)):
        compiled(*wrong)
    compiled(X, y)  # and the program still works


@pytest.mark.parametrize(("loss", "change", "standard", "words"), TARGETS)
def test_first_target(loss, change, standard, words):
    model, X, y = mlp(), torch.randn(6, 4), torch.randint(2, (6, 3)).float()
    compiled, wrong = hbp.compile(model, loss, quantities=["grad"]), change(y)
    with refused(hbp.InputError, standard, "y", *words, model=model, tensors=(X, y)):
        compiled(X, wrong)


@pytest.mark.parametrize(("loss", "change", "standard", "words"), TARGETS)
def test_later_target(loss, change, standard, words):
    model, compiled = compiled_before(type(loss))
    X, y = torch.randn(6, 4), torch.randint(2, (6, 3)).float()
    wrong = change(y)
    with refused(hbp.InputError, standard, "y", *words, model=model, tensors=(X, y)):
        compiled(X, wrong)
    compiled(X, y)


def test_target_that_would_broadcast_against_the_output():
    model, X, y = nn.Linear(4, 1), torch.randn(6, 4), torch.randn(6)
    with refused(hbp.InputError, ValueError, "y", "[6]", "[N, 1]", model=model):
        hbp.compile(model, nn.MSELoss(), quantities=["grad"])(X, y)


def test_generator_is_no_generator():
    model, (X, y) = mlp(), batch()
    compiled = hbp.compile(model, quantities=["grad"], example_inputs=(X, y))
    with refused(hbp.InputError, TypeError, "generator", "3", model=model):
        compiled(X, y, generator=3)


def test_one_error_catches_everything():
    assert issubclass(hbp.CompileError, hbp.HbpError)
    assert issubclass(hbp.InputError, hbp.HbpError)
    assert issubclass(hbp.UnsupportedOpError, hbp.CompileError)
