"""What is added to eigenvalues before a Newton step divides by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.errors import InputError, InputTypeError

Damping = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(eigenvalues [k], slopes [N, k], curvatures [N, k]) -> [k]"""
BOOTSTRAP = "bootstrap"


def bootstrap(candidates: Sequence[float] | Tensor | None = None, resamples: int = 100, percentile: float = 5.0,
              generator: torch.Generator | None = None) -> Damping:
    """A damping for each direction, chosen by what it would probably gain (Dangel, Tatzel, Hennig 2022, section 5).

    Along one direction with slope g and curvature h of the loss, a step tau changes the quadratic model of L by -gain,
    gain = -g tau - h tau^2 / 2. For each candidate delta the samples are drawn anew with replacement, `resamples`
    times: one draw's means give the step tau = -g / (h + delta), another's judge its gain. Taken is the candidate whose
    `percentile`-th percentile of gains is largest; infinity, no step in that direction, if none is at least zero.

    Args:
        candidates: positive dampings, on the scale of the eigenvalues; None: 100 from 1e-3 to 1e2, equally far apart in
            logarithms.
        resamples: how often the samples are drawn.
        percentile: from 0 to 100; the smaller, the more cautious.
        generator: for the draws; None: one of its own, seeded with 0, at each call. torch's global one is never used.

    Returns:
        a function for `newton_step(damping=...)`. Slopes and curvatures may be those of different samples.

    Raises:
        InputError: for candidates that are not positive, no resamples, a percentile out of range.
    """
    grid = torch.logspace(-3, 2, 100, dtype=torch.float64, device="cpu") if candidates is None else torch.as_tensor(
        candidates, dtype=torch.float64, device="cpu")
    if grid.dim() != 1 or not len(grid) or not bool((grid > 0).all()):
        raise InputError(f"candidates must be positive numbers in a list or a tensor with one axis, not {candidates!r}")
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 1:
        raise InputError(f"resamples must be a positive whole number, not {resamples!r}")
    if not 0 <= percentile <= 100:
        raise InputError(f"percentile must lie between 0 and 100, not {percentile!r}")

    def damping(eigenvalues: Tensor, slopes: Tensor, curvatures: Tensor) -> Tensor:
        draws = torch.Generator().manual_seed(0) if generator is None else generator
        # Means are those of L itself if L is a mean; for a sum the eigenvalue is N times the curvatures' mean.
        scale = eigenvalues / curvatures.mean(0)
        first, second = scale * slopes, scale * curvatures
        steps, curved = (_resampled(values, resamples, draws) for values in (first, second))
        g, h = (_resampled(values, resamples, draws) for values in (first, second))
        chosen = torch.full_like(eigenvalues, torch.inf)
        best = torch.zeros_like(eigenvalues)
        for candidate in grid.to(eigenvalues):
            tau = -steps / (curved + candidate)
            gain = (-g * tau - h * tau.square() / 2).quantile(percentile / 100, 0)
            better = (gain > best) | ((gain >= best) & chosen.isinf())
            chosen = torch.where(better, candidate, chosen)
            best = torch.where(better, gain, best)
        return chosen

    return damping


def _resampled(values: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    """Means [resamples, k] of the samples drawn with replacement, the same draws for all directions."""
    count = len(values)
    draws = torch.randint(count, (resamples, count), generator=generator, device=generator.device).to(values.device)
    counts = torch.zeros(resamples, count, dtype=values.dtype, device=values.device)
    counts.scatter_add_(1, draws, torch.ones_like(counts))
    return counts @ values / count


def check_damping(given: Any, eigenvalues: Tensor, slopes: Tensor, curvatures: Tensor) -> Tensor:
    """[k], positive: a number for all, one for each, or what a function makes of the three. Raises InputError."""
    source = "damping"
    if isinstance(given, str):
        if given != BOOTSTRAP:
            raise InputError(f"damping {given!r} is unknown; as a text there is {BOOTSTRAP!r} only")
        given = bootstrap()
    if callable(given) and not len(eigenvalues):
        return eigenvalues
    if callable(given):
        given, source = given(eigenvalues, slopes, curvatures), "what the damping function returned"
    if isinstance(given, bool) or not isinstance(given, int | float | Tensor):
        raise InputTypeError(f"{source} must be a number or a tensor [{len(eigenvalues)}], or damping a function that "
                             f"returns one, not {given!r}")
    found = torch.as_tensor(given, dtype=eigenvalues.dtype, device=eigenvalues.device)
    if tuple(found.shape) not in ((), tuple(eigenvalues.shape)):
        raise InputError(f"{source} has shape {list(found.shape)}, but there are {len(eigenvalues)} directions: "
                         f"a number, or [{len(eigenvalues)}]")
    if not bool((found > 0).all()):
        raise InputError(f"{source} must be positive; {found[~(found > 0)].flatten()[0].item():g} is not")
    return found.expand(eigenvalues.shape)
