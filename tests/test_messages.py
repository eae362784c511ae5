"""What is said of the mistakes of a first hour: each message names what to write."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.bridges.influence import scores
from hbpcompiler.rule import ZERO, Rule


class Language(nn.Module):
    """An embedding and a linear layer, of one table or two."""

    def __init__(self, tied=False):
        super().__init__()
        self.table, self.head = nn.Embedding(40, 8), nn.Linear(8, 40, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, tokens):
        return self.head(self.table(tokens))


def task():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(8, 4), torch.randint(3, (8,))


def test_the_batch_where_the_loss_belongs():
    model, X, y = task()
    with pytest.raises(hbp.CompileError, match=r"not Tensor; a batch goes to .* compiled\(X, y\)"):
        hbp.compile(model, X, y)


@pytest.mark.parametrize(("change", "words"), [
    (lambda X, y: (torch.randint(3, X.shape), y), r"Long and Float.*; pass X\.float\(\)"),
    (lambda X, y: (X[0], y[0]), r"one sample is X\[None\], y\[None\]"),
    (lambda X, y: (X.numpy(), y), r"X must be a tensor, not ndarray: torch\.from_numpy\(X\)"),
])
def test_batches(change, words):
    model, X, y = task()
    assert isinstance(X.numpy(), np.ndarray)
    with pytest.raises(hbp.InputError, match=words):
        hbp.compile(model, quantities=["grad"])(*change(X, y))


def test_classes_in_the_last_axis():
    """As a language model has them; the loss that the message writes goes through."""
    tokens = torch.randint(40, (2, 12))
    with pytest.raises(hbp.InputError, match=r"classes in axis 1.*lambda o, y: F\.cross_entropy\(o\.flatten\(0, -2\)"):
        hbp.compile(Language(), quantities=["grad"])(tokens, tokens)

    def flattened(o, y):
        return nn.functional.cross_entropy(o.flatten(0, -2), y.flatten())

    model = Language()
    result = hbp.compile(model, flattened, ["grad"])(tokens, tokens)
    (expected,) = torch.autograd.grad(flattened(model(tokens), tokens), model.head.weight)
    torch.testing.assert_close(result.grad["head.weight"], expected)


def test_values_are_by_name():
    model, X, y = task()
    result = hbp.compile(model, quantities=["diag_h"])(X, y)
    with pytest.raises(AttributeError, match=r"diag_h is a dict by parameter name.* result\.diag_h\['0\.weight'\]"):
        _ = result.diag_h.shape
    with pytest.raises(KeyError, match=r"not by parameters: this one is '0\.weight', by its shape"):
        _ = result.diag_h[model[0].weight]
    assert pickle.loads(pickle.dumps(result.diag_h)).quantity == "diag_h"


def test_scores_of_values_without_their_curvature():
    model, X, y = task()
    compiled = hbp.compile(model, quantities=["kflr"])
    with pytest.raises(hbp.InputError, match=r"not Values: hbp\.curvature\(total\.kflr\)"):
        scores(compiled(X, y).kflr, compiled, [(X, y)], compiled, [(X, y)])


def test_sums_that_are_added_up_by_hand():
    model, X, y = task()
    compiled = hbp.compile(model, quantities=["clipped_grad"])
    with pytest.raises(hbp.InputError, match="add up your calls' results, or use into="):
        hbp.accumulate(compiled, [(X, y)], progress=False)
    total = {"clipped_grad": {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}}
    for _ in range(2):
        compiled(X, y, max_norm=1.0, into=total)
    once = compiled(X, y, max_norm=1.0).clipped_grad
    torch.testing.assert_close(total["clipped_grad"]["0.weight"], 2 * once["0.weight"])


def test_factors_of_a_shared_table():
    def loss(o, y):
        return nn.functional.cross_entropy(o.flatten(0, -2), y.flatten())

    tokens = torch.randint(40, (2, 12))
    with pytest.raises(hbp.CompileError, match="it has no Kronecker factors \\(an embedding and a linear layer, say"):
        hbp.compile(Language(tied=True), loss, ["kfac"])(tokens, tokens)


def test_a_rule_where_its_file_belongs():
    model, _, _ = task()
    with pytest.raises(hbp.CompileError, match="must be paths of rule files, not Rule: the path of a Python file"):
        hbp.compile(model, quantities=["grad"], rules=[Rule(["mylib.square"], ZERO)])


def test_a_closure_goes_by_name():
    model, X, y = task()
    optimizer = hbp.optim.KFAC(model)
    for batch in ((lambda: None,), (X, y, lambda: None)):
        with pytest.raises(hbp.InputError, match=r"step\(X, y, closure=closure\)"):
            optimizer.step(*batch)
