"""Styles of clipping per-sample gradients: which norms decide, and how much a sample then weighs.

g_n is the gradient of l_n. A clipped gradient is sum_n C_n g_n, with C_n a function of a norm |g_n| and of a bound,
max_norm, that each call brings:

flat (Abadi et al. 2016, algorithm 1): C_n = min(1, max_norm / |g_n|), the norm over all parameters together;
automatic (Bu et al. 2023, AUTO-S): C_n = max_norm / (|g_n| + 0.01), with the same norm;
opacus: C_n = min(1, max_norm / (|g_n| + 1e-6)), with the same norm: flat as Opacus's optimizers compute it;
per_parameter (McMahan et al. 2018): as flat, but each parameter has a norm, and may have a bound, of its own.

A norm of zero weighs 1 (automatic: 100 max_norm), and changes nothing. A norm that is infinite, or whose square is too
large for the dtype, weighs 0: that drops a sample whose gradient is finite, and one with an infinite entry makes the
sum NaN, as a NaN does. Nothing is replaced silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

FLAT, PER_PARAMETER, AUTOMATIC, OPACUS = "flat", "per_parameter", "automatic", "opacus"
STYLES: Mapping[str, str] = {
    FLAT: "min(1, max_norm / |g_n|), norms over all parameters",
    PER_PARAMETER: "min(1, max_norm / |g_n|), with a norm for each parameter",
    AUTOMATIC: "max_norm / (|g_n| + 0.01), norms over all parameters",
    OPACUS: "min(1, max_norm / (|g_n| + 1e-6)), norms over all parameters",
}
STABILITY = 0.01
"""Added to norms by automatic clipping, so that small gradients stay small (Bu et al. 2023)."""
ROUNDED_UP = 1e-6
"""Added to norms by Opacus, so that none is zero."""
ALL = "all"
"""The group of all parameters."""


def groups(style: str, parameters: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The parameters whose norms are taken together, by a name of the group."""
    names = tuple(parameters)
    return {name: (name,) for name in names} if style == PER_PARAMETER else {ALL: names}


def norms_of(squares: Any) -> Any:
    """|g_n| of squared norms, [N]: a sum of inner products may round to below zero, or to -0.0."""
    return squares.abs().sqrt()


def weights(style: str, norms: Any, max_norm: Any) -> Any:
    """C_n, [N], of norms [N]."""
    if style == AUTOMATIC:
        return max_norm / (norms + STABILITY)
    if style == OPACUS:
        norms = norms + ROUNDED_UP
    return (max_norm / norms).clamp(max=1.0)
