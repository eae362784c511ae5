"""Verdicts on the step size: alpha, distances, the norm of the gradient."""

from __future__ import annotations

import math

from torch import Tensor

from hbpcompiler.report.verdicts.general import course
from hbpcompiler.report.words import Verdict, number, share

SHORT, STRAIGHT, FAR, UPHILL = -0.5, -0.1, 0.5, 1.0
"""Of alpha: -1 has not moved, 0 stands where the fitted parabola is lowest, 1 on its other side at the same height."""
LOWERED = 0.5
"""Of the largest learning rate: below it a schedule has made steps short."""
OFTEN = 0.25
"""Share of steps that end uphill from which it is worth a word above the page."""
WANDERING, OSCILLATING = 1.2, 0.6
"""Times the straightness of a random walk, up to which a path is called no straighter than one, and an oscillation."""
ENOUGH = 20
"""Steps from which on a path is compared with a random walk."""
VANISHED, EXPLODED = 1e-4, 100.0
"""Of the gradient's norm at first."""


def alpha(recent: Tensor, rate: float = 1.0) -> Verdict:
    """Where recent steps end on the parabola through their two ends (Schneider, Dangel, Hennig 2021, section 3.1).

    Args:
        recent: [S] the values of alpha, at least one, all finite.
        rate: the learning rate now, in parts of the largest that there was: where it was lowered on purpose, short
            steps are no news.
    """
    middle = recent.median().item()
    uphill = (recent > UPHILL).double().mean().item()
    lowered = rate < LOWERED
    if middle < SHORT and lowered:
        words = f"stop far short of the lowest point, with a learning rate at {share(rate)} of its largest"
    elif middle < SHORT:
        words = "stop far short of the lowest point: a larger step size is worth a try"
    elif middle < STRAIGHT:
        words = "stop a little short of the lowest point"
    elif middle <= FAR:
        words = "end near the lowest point along the step"
    elif middle <= UPHILL:
        words = "end beyond the lowest point, on the other side of the valley"
    else:
        words = "end higher than they began: a smaller step size is worth a try"
    also = f"; {share(uphill)} end uphill" if uphill > 0 else ""
    return Verdict(f"recent steps {words} (median {number(middle, 2)}{also})",
                   notable=(middle < SHORT and not lowered) or middle > UPHILL or uphill > OFTEN)


def distance(travelled: float, path: float, steps: int) -> Verdict:
    """How straight the path is: its length against the distance from where it began.

    Args:
        travelled: distance from the first parameters now.
        path: length of the path until now, the sum of the sizes of all its updates.
        steps: updates that it is made of. A random walk gets sqrt(steps) updates far, 1 / sqrt(steps) of its path.
    """
    if not path > 0 or steps < 1:
        return Verdict(f"{number(travelled)} from the start: the parameters do not move", notable=True)
    straight, random = travelled / path, 1 / math.sqrt(steps)
    if straight > 1.05:  # the updates that were tracked are smaller than the others: nothing is known of the path
        return Verdict(f"{number(travelled)} from the start")
    text = f"{number(travelled)} from the start, {share(min(straight, 1.0))} of a path of about {number(path)}"
    if steps >= ENOUGH and straight <= OSCILLATING * random:
        return Verdict(f"{text}: less far than a random walk leads ({share(random)}), it oscillates", notable=True)
    if steps >= ENOUGH and straight <= WANDERING * random:
        return Verdict(f"{text}: no straighter than a random walk ({share(random)})")
    return Verdict(text)


def path_length(sizes: Tensor, first: int, last: int) -> tuple[float, int]:
    """Length of a path and its number of steps, from the sizes of some of its updates: their mean times the steps.

    Args:
        sizes: [S] sizes of the tracked updates, finite.
        first, last: the first and the last step that was tracked.
    """
    steps = last - first + 1
    return sizes.mean().item() * steps, steps


def gradient_norm(first: float, recent: float) -> Verdict:
    """The norm of the gradient against that at first."""
    text = course(first, recent)
    if recent == 0:
        return Verdict("zero: no parameter learns", notable=True)
    if first > 0 and recent > EXPLODED * first:
        return Verdict(f"{text}: it explodes", notable=True)
    if recent < VANISHED * first:
        return Verdict(f"{text}: a plateau or a minimum")
    return Verdict(text)
