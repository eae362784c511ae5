"""Helpers of generated files for the weights of samples that a call may bring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from torch import Tensor

from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.writer import named
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


@dataclass(frozen=True)
class Weights:
    """What a program makes of the weights once, where it begins; what nothing reads is left out."""

    given: Any
    roots: Any
    averaged: Any
    """1 on average."""
    averaged_roots: Any

    @classmethod
    def of(cls, given: Any) -> Weights:
        averaged = mean_weights(given)
        roots = _once(root_weights(given), "weights_root")
        return cls(given, roots, averaged, _once(root_weights(averaged), "mean_weights_root"))

    def factors(self, root: bool, average: bool) -> Any:
        """What a sample's tensors are multiplied by."""
        if average:
            return self.averaged_roots if root else self.averaged
        return self.roots if root else self.given


def _once(proxy: Any, name: str) -> Any:
    """A line of its own, though it may be None."""
    meta.annotate_as(proxy.node, "Optional[Tensor]")
    return named(proxy, name)
