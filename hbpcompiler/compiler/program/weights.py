"""Helpers of generated files for the weights of samples that a call may bring."""

from __future__ import annotations

from typing import Optional

from torch import Tensor

from hbpcompiler.rule.idioms import idiom


@idiom
def weighted(x: Tensor, w: Optional[Tensor]) -> Tensor:  # noqa: UP045
    """x [N, ...] times each sample's weight, if there are some."""
    return x if w is None else x * w.type_as(x).reshape([-1] + [1] * (x.dim() - 1))


@idiom
def root_weights(w: Optional[Tensor]) -> Optional[Tensor]:  # noqa: UP045
    """The weights' roots, if there are weights."""
    return None if w is None else w.double().sqrt()


@idiom
def mean_weights(w: Optional[Tensor]) -> Optional[Tensor]:  # noqa: UP045
    """Weights that are 1 on average, if there are weights: sums over N become weighted averages."""
    return None if w is None else w.double() * (w.shape[0] / w.double().sum())
