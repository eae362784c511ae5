"""The inverse of a running average, which takes the place of the last one."""

import copy

import pytest
import torch

import hbpcompiler as hbp
from hbpcompiler.optim import inverse
from tests.optim.models import chain, tokens

KINDS = ["kfac", "ekfac", "blocks", "diag_ggn"]


def made(curvature, model):
    return hbp.optim.Preconditioner(model, torch.nn.CrossEntropyLoss(), curvature, 0.1, invert_every=1)


@pytest.mark.parametrize("curvature", KINDS)
def test_a_state_that_was_loaded_is_not_written_over(curvature):
    model, X, y = tokens() if curvature == "kfac" else chain()
    first = made(curvature, model)
    first.step(X, y)
    state = copy.deepcopy(first.state_dict())
    second = made(curvature, model)
    second.load_state_dict(state)
    before = copy.deepcopy(state)
    second.damping = 0.3
    for _ in range(3):
        second.step(X[:4], y[:4])
    for own, other in zip(torch.utils._pytree.tree_leaves(state), torch.utils._pytree.tree_leaves(before), strict=True):
        assert torch.equal(own, other) if isinstance(own, torch.Tensor) else own == other


@pytest.mark.parametrize("curvature", KINDS)
def test_inverses_are_those_of_dense_algebra_whatever_was_there_before(curvature):
    model, X, y = chain()
    optimizer = made(curvature, model)
    for step in range(3):
        optimizer.damping = 0.1 * 10.0**-step
        _, gradient = optimizer.gradient(X[step:], y[step:])
        found = optimizer._running.preconditioned(gradient)
        split = "pi" if curvature == "kfac" else "exact"
        wanted = optimizer.curvature().solve(gradient, optimizer.damping, split)
        for name, part in wanted.items():
            assert torch.allclose(found[name], part, rtol=1e-9, atol=1e-12)


def test_where_an_inverse_fails_nothing_is_divided_by_what_is_left_of_it(monkeypatch):
    model, X, y = chain()
    optimizer, alone = made("kflr", model), made("kflr", model)
    optimizer.step(X, y)
    own = inverse.Inverse._found

    def failing(self, block, dampings):
        if "2.weight" in block.names:
            raise hbp.InputError("no inverse")
        return own(self, block, dampings)

    monkeypatch.setattr(inverse.Inverse, "_found", failing)
    with pytest.raises(hbp.InputError, match="no inverse"):
        optimizer.step(X, y)
    with pytest.raises(hbp.InputError, match="nothing to divide by"):
        optimizer.precondition()
    assert optimizer.state_dict()["running"]["inverse"] is None
    monkeypatch.undo()
    optimizer.step(X, y)
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    alone.step(X, y)  # one batch again and again has one average
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
