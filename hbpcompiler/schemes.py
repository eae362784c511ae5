"""Curvature schemes: how the residual of an operation enters the curvature, decided once, where it is born.

The positive-curvature Hessian (Dangel, Harmeling, Hennig 2020, section 3; Chen et al. 2018) replaces the eigenvalues of
each operation's residual R = sum_j g_j Hessian(v_j) by their absolute values, or drops the negative ones. Here R is
F diag(sigma) F^T as the operation's rule factors it, and the schemes act on sigma: "abs" is F F^T, "clip" keeps the
columns with sigma > 0. These are R's eigenvalues where F's columns of either sign are orthogonal to those of the other:
elementwise operations (any diagonal residual), residuals of one sign (log-softmax, logsumexp, variances, vector norms),
products and quotients of two tensors of one shape. Elsewhere (softmax, matrix products, attention, layer, group and RMS
norms, products that broadcast) the result is positive semidefinite and not below R, but is not |R|. A loss's own
Hessian is never changed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from hbpcompiler.quantities import (
    FIRST_ORDER,
    GGN,
    GGN_MC,
    KFRA,
    OUTPUT,
    RESIDUAL,
    RESIDUAL_MC,
    RESIDUAL_PARTS,
    Closing,
    Quantity,
)

HESSIAN, GGN_ALONE, PCH_ABS, PCH_CLIP = "hessian", "ggn", "pch_abs", "pch_clip"
SCHEMES: Mapping[str, str] = {
    HESSIAN: "residuals as they are",
    GGN_ALONE: "no residuals",
    PCH_ABS: "residuals with the absolute values of their eigenvalues",
    PCH_CLIP: "residuals without their negative eigenvalues",
}


def kept(curvature: str, closings: Collection[Closing]) -> frozenset[Closing]:
    """The closings that are left under a scheme."""
    dropped = (RESIDUAL, RESIDUAL_MC, RESIDUAL_PARTS) if curvature == GGN_ALONE else ()
    return frozenset(closing for closing in closings if closing.stream not in dropped)


def is_ggn(curvature: str, quantity: Quantity) -> bool:
    """Whether, under a scheme, the quantity is one of the GGN alone."""
    streams = {closing.stream for closing in kept(curvature, quantity.needs)} - {"", OUTPUT, *FIRST_ORDER}
    return bool(streams) and streams <= {GGN, GGN_MC, KFRA}


def signs_kept(curvature: str) -> tuple[int, ...]:
    """Which of a residual's columns enter, by their sigma."""
    return (1,) if curvature == PCH_CLIP else (1, -1)


def is_signed(curvature: str) -> bool:
    """Whether residuals may be negative."""
    return curvature == HESSIAN
