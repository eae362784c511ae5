"""Weights of samples: finite numbers, not negative where a root of them is taken."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hbpcompiler.errors import InputError, InputTypeError, listing
from hbpcompiler.quantities import CURVATURE, OUTPUT, QUANTITIES

from .argument import FLOATING, Call, listed


def check_weights(value: Any, call: Call) -> Tensor | None:
    """[N] floating-point numbers, finite; not negative where a root of them is taken."""
    if value is None:
        return None
    if not isinstance(value, Tensor):
        raise InputTypeError(f"sample_weights must be a tensor of shape [{call.samples}], a number for each sample, "
                             f"not {type(value).__name__}")
    if value.dtype not in FLOATING:
        raise InputTypeError(f"sample_weights must be a tensor of floating-point numbers ({listed(FLOATING)}), not "
                             f"{value.dtype}; convert it: sample_weights.float()")
    if all(QUANTITIES[name].streams == {OUTPUT} for name in call.quantities):
        raise InputError(f"sample_weights are for what is made of the samples' losses; {', '.join(call.quantities)} "
                         "is of the model's output: leave them out")
    findings = []
    if tuple(value.shape) != (call.samples,):
        findings.append(f"it has shape {list(value.shape)}, but the batch has {call.samples} samples: one weight for "
                        f"each, shape [{call.samples}]")
    if value.device != call.device:
        findings.append(f"it is on {value.device}, and the batch on {call.device}")
    if not findings:
        findings += _wrong_numbers(value.detach(), call)
    if findings:
        raise InputError(listing("sample_weights does not fit:", findings))
    return value.detach()


def _wrong_numbers(weights: Tensor, call: Call) -> list[str]:
    finite = weights.isfinite()
    if not finite.all():
        return [f"{_at(weights, ~finite)}, but weights are finite numbers"]
    roots = [name for name in call.quantities if QUANTITIES[name].streams & CURVATURE or QUANTITIES[name].averages]
    negative = weights < 0
    if roots and negative.any():
        return [f"{_at(weights, negative)}, but weights are not negative for {', '.join(roots)}: square roots of them "
                "are taken; the quantities of the gradient alone take negative ones"]
    averages = [name for name in roots if QUANTITIES[name].averages]
    if averages and call.samples and not weights.any():
        return [f"all weights are zero, so that {', '.join(averages)} has no value: it has averages over the samples"]
    return []


def _at(weights: Tensor, wrong: Tensor) -> str:
    place = wrong.nonzero()[0].tolist()
    return f"sample_weights{place} is {weights[tuple(place)].item()}"
