"""Whole matrices by brute force: small models in float64."""

import torch

import hbpcompiler as hbp
from hbpcompiler.reference import Forward, derivative, jacobian


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def dense(run, kind, names=None):
    """The [D, D] matrix of a `Forward` pass: "ggn", "hessian" or "fisher_empirical"."""
    names = list(run.parameters) if names is None else names
    if kind == "ggn":
        rows = torch.cat([jacobian(run.output, run.parameters[name]) for name in names], 1)
        return rows.T @ run.curvature @ rows
    if kind == "hessian":
        slopes = [derivative(run.loss, run.parameters[name], keep=True).flatten() for name in names]
        return torch.cat([torch.cat([jacobian(slope, run.parameters[name]) for slope in slopes]) for name in names], 1)
    each = torch.cat([run.sample_gradients(name).reshape(run.batch, -1) for name in names], 1)
    return each.T @ each / (run.batch if run.mean else 1)


def forward(operator, model, loss, inputs, y):
    """A pass with the operator's own draws for its first batch."""
    return Forward(model, loss, inputs, y, seed=operator._passes.seed_of(0))


def same(found, expected, tolerance=1e-9, what=""):
    """In float64, relative to the largest number."""
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    assert found.shape == expected.shape, (what, found.shape, expected.shape)
    assert float((found - expected).abs().max()) <= tolerance * max(largest, 1e-3), what


def check(model, loss, inputs, y, kinds=("ggn", "hessian", "fisher_empirical"), names=None):
    """Whole matrices, through products with the identity, and one product with a vector."""
    batch = (inputs, y) if isinstance(inputs, dict) else (*inputs, y)
    for kind in kinds:
        operator = hbp.operator(model, loss, batch, kind, parameters="*" if names is None else names)
        expected = dense(forward(operator, model, loss, inputs, y), kind, names)
        same(operator.to_dense(), expected, what=kind)
        vector = torch.randn(len(expected), dtype=expected.dtype)
        same(operator @ vector, expected @ vector, what=f"{kind} times a vector")
