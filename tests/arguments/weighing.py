"""Weights of samples against brute force, and what a program says of them by itself."""

import warnings

import torch
from hypothesis import strategies as st

import hbpcompiler as hbp
from hbpcompiler.reference import Weighted, reference
from tests.agreement import close

EXACT = ["grad", "batch_grad", "batch_l2", "second_moment", "variance", "diag_ggn", "diag_h"]
MORE = ["batch_loss", "batch_diag_h", "trace_h", "sqrt_ggn", "block"]
DOUBLE = torch.float64
WEIGHTS = torch.tensor([0.5, 0.0, 3.0, 1.5], dtype=DOUBLE)
TIMES = torch.tensor([2, 0, 1, 3])
"""How often samples stand in a batch."""


def compile_quietly(*given, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hbp.IndefiniteCurvatureWarning)
        return hbp.compile(*given, **options)


def run(compiled, *batch, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return compiled(*batch, **arguments)


def check(model, loss, X, y, weights, *, quantities=EXACT, **options):
    """With these weights against brute force, with ones to the bit, and what follows of each other."""
    compiled = compile_quietly(model, loss, [*quantities, *MORE], **options)
    result = run(compiled, X, y, sample_weights=weights)
    held = Weighted(loss, weights)
    scales = reference(model, held, [X], y, "second_moment", seed=0)
    for quantity in quantities:
        for name, value in reference(model, held, [X], y, quantity, seed=0).items():
            if name in result[quantity]:
                close(result[quantity][name], value, f"{quantity} of {name}",
                      scales[name] if quantity == "variance" else None)
    for name, value in result.diag_h.items():
        close(result.batch_diag_h[name].sum(0), value, f"batch_diag_h of {name}")
        close(result.trace_h[name], value.sum(), f"trace_h of {name}")
        close(result.sqrt_ggn[name].square().sum((0, 1)), result.diag_ggn[name], f"sqrt_ggn of {name}")
        entry = torch.zeros_like(value)
        entry.view(-1)[0] = 1
        product = compiled.block_product(result, name, entry)
        close(product.view(-1)[0], value.view(-1)[0], f"block of {name}", value)
    check_losses(compiled, loss, result, X, y, weights)
    check_ones(compiled, X, y)
    assert len(compiled._guards) == 1
    return compiled, result


def check_losses(compiled, loss, result, X, y, weights):
    """batch_loss [N] and result.loss against a run without weights, and against the user's own loss."""
    plain = run(compiled, X, y)
    is_mean = getattr(loss, "reduction", "mean") == "mean"
    torch.testing.assert_close(plain.batch_loss.mean() if is_mean else plain.batch_loss.sum(), plain.loss)
    torch.testing.assert_close(result.batch_loss, weights * plain.batch_loss)
    torch.testing.assert_close(result.batch_loss.mean() if is_mean else result.batch_loss.sum(), result.loss)


def parts(value):
    """The tensors of a result."""
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else []
    return [part for item in items for part in parts(item)]


def check_ones(compiled, X, y):
    plain, ones = run(compiled, X, y), run(compiled, X, y, sample_weights=torch.ones(len(X)))
    assert torch.equal(plain.loss, ones.loss)
    for quantity in plain:
        for one, other in zip(parts(plain[quantity]), parts(ones[quantity]), strict=True):
            assert torch.equal(one, other), quantity


def drawn(data, samples):
    """Weights, some of them zero."""
    numbers = st.one_of(st.just(0.0), st.floats(0.1, 3))
    return torch.tensor(data.draw(st.lists(numbers, min_size=samples, max_size=samples)), dtype=DOUBLE)
