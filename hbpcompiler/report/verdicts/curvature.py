"""Verdicts on curvature: its sharpest direction against the step size, its mean, the criterion of Takeuchi."""

from __future__ import annotations

from typing import Any

from hbpcompiler.report.verdicts.general import course
from hbpcompiler.report.words import Verdict, number, times

NEAR = 0.8
"""Share of the edge from which a direction is called close to it."""


def edge_of_stability(optimizer: dict[str, Any], lr: float) -> tuple[float, str] | None:
    """The curvature above which a step of gradient descent overshoots more than it gains, and how to say it.

    2 / lr of plain steps, (2 + 2 m) / lr with momentum m, (2 + 2 m) / ((1 + 2 m) lr) of Nesterov's (Cohen et al. 2021,
    "Gradient descent on neural networks typically occurs at the edge of stability", section 2 and appendix B); weight
    decay adds itself to the curvature, so the loss' own may be that much less. None for optimizers that rescale
    directions, for ascent, and for dampened momentum.

    Args:
        optimizer: {"name": "SGD", "momentum": ...}, as the header of a log has it.
        lr: step size of that step.
    """
    momentum = float(optimizer.get("momentum") or 0)
    dampened = momentum > 0 and bool(optimizer.get("dampening"))
    if optimizer.get("name") != "SGD" or optimizer.get("maximize") or dampened or not lr > 0:
        return None
    decay = float(optimizer.get("weight_decay") or 0)
    if momentum and optimizer.get("nesterov"):
        edge, words = (2 + 2 * momentum) / ((1 + 2 * momentum) * lr), "the edge for Nesterov's momentum"
    elif momentum:
        edge = (2 + 2 * momentum) / lr
        words = f"the edge for momentum {number(momentum)}, (2 + 2 momentum) / step size,"
    else:
        edge, words = 2 / lr, "2 / step size"
    return edge - decay, words + (" less weight decay" if decay else "")


def sharpness(sharpest: float, edge: tuple[float, str] | None) -> Verdict:
    """The largest eigenvalue against the edge of stability."""
    text = f"sharpest direction {number(sharpest, 2)}"
    if edge is None:
        return Verdict(text)
    bound, words = edge
    text = f"{text}, {words} is {number(bound, 2)}"
    if sharpest > bound:
        return Verdict(f"{text}: above the edge of stability", notable=True)
    if sharpest > NEAR * bound:
        return Verdict(f"{text}: at the edge of stability")
    return Verdict(f"{text}: below the edge of stability")


def mean_curvature(trace: float, numbers: int | None, sharpest: float | None) -> Verdict:
    """The trace; with the number of parameters its mean, and how much sharper the sharpest direction is."""
    if not numbers:
        return Verdict(f"trace {number(trace)}")
    mean = trace / numbers
    text = f"trace {number(trace)}, {number(mean, 2)} in the mean of {numbers} directions"
    if mean < 0:
        return Verdict(f"{text}: curved downwards in the mean", notable=True)
    if sharpest is not None and mean > 0 and sharpest > mean:
        return Verdict(f"{text}; the sharpest is {times(sharpest / mean)} as curved")
    return Verdict(text)


def takeuchi(diagonal: tuple[float, float] | None, trace: tuple[float, float] | None) -> Verdict | None:
    """The criterion in its two forms, an estimate of the gap between the losses of training and of new data near a
    minimum.

    Args:
        diagonal: the first value and the recent one of the sum of ratios by parameter, None where not tracked.
        trace: the same of the ratio of sums.
    """
    parts = [f"{words} {course(*values)}" for words, values in (("by entries", diagonal), ("by traces", trace))
             if values is not None]
    return Verdict("noise over curvature " + "; ".join(parts)) if parts else None
