"""Limits that force each way to a second phase, and the comparison of clipped gradients with brute force."""

import torch

import hbpcompiler as hbp
from hbpcompiler.reference import Weighted, clipped_grad

KEPT_LIMITS = hbp.Limits(formed_time=0)
AGAIN_LIMITS = hbp.Limits(formed_time=0, kept_bytes=0)
FORMED_LIMITS = hbp.Limits(formed_time=10.0**9, formed_bytes=2**40)
WAYS = {"kept": KEPT_LIMITS, "again": AGAIN_LIMITS, "formed": FORMED_LIMITS}


def check_clipped(model, loss, inputs, y, limits=None, others=(), clipping="flat", rtol=1e-8, weights=None,
                  **options):
    """Compile, call with a bound that clips about half of the samples, compare; returns both."""
    weighted = loss if weights is None else Weighted(loss, weights)
    _, norms = clipped_grad(model, weighted, inputs, y, 1.0, clipping)
    bounds = {name: float(norm.median()) or 1.0 for name, norm in norms.items()}
    bound = bounds if clipping == "per_parameter" else next(iter(bounds.values()))
    expected, norms = clipped_grad(model, weighted, inputs, y, bound, clipping)
    compiled = hbp.compile(model, loss, ["clipped_grad", *others], clipping=clipping, limits=limits, **options)
    given = [inputs] if isinstance(inputs, dict) else inputs
    torch.manual_seed(0)
    brought = {} if weights is None else {"sample_weights": weights}
    result = compiled(*given, y, max_norm={name: bound[name] for name in norms} if isinstance(bound, dict) else bound,
                      **brought)
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        if name not in result.clipped_grad:  # no derivative reaches it
            assert not value.any(), name
            continue
        torch.testing.assert_close(result.clipped_grad[name], value, rtol=rtol, atol=rtol * largest,
                                   msg=lambda text, at=name: f"clipped_grad of {at}: {text}")
        found = result.norms[name] if clipping == "per_parameter" else result.norms
        torch.testing.assert_close(found, norms[name].to(found.dtype), rtol=rtol, atol=rtol)
    return compiled, result
