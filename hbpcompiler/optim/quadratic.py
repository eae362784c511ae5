"""The quadratic model of the loss along a few directions, and what is read off it: step sizes, and how far to trust it.

With directions V (columns), gradient g and the batch's exact GGN C,

    q(w) = 1/2 w^T V^T (C + damping) V w + g^T V w

predicts how L changes if the parameters move by V w (Martens & Grosse 2015, section 6.4 and 7; damping by the
reduction ratio: section 6.5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.compiler.trace.checks import check_batch
from hbpcompiler.operators.at_outputs import LossHessian
from hbpcompiler.operators.passes import Passes
from hbpcompiler.operators.products import Products
from hbpcompiler.operators.vectors import gram
from hbpcompiler.optim.programs import Gradient
from hbpcompiler.optim.together import Together


@dataclass(frozen=True)
class Quadratic:
    """q in the coefficients w: float64, [k, k], [k, k] and [k]."""

    curvature: Tensor
    """V^T C V, with the l2 term's own curvature."""
    damping: Tensor
    """V^T damping V"""
    slope: Tensor
    """V^T g"""

    def times(self, factors: Sequence[float]) -> Quadratic:
        """Along the directions times these."""
        w = torch.tensor(factors, dtype=torch.float64, device="cpu")
        both = torch.outer(w, w)
        return Quadratic(self.curvature * both, self.damping * both, self.slope * w)

    def minimum(self, given: Sequence[float | None]) -> Tensor:
        """w that minimises q, where some coefficients are given and None is free. One of no effect is zero.

        Of a loss that is not convex q may fall for ever, and is level where it is highest: there its curvature counts
        by its absolute value (Dauphin et al. 2014), so that steps lead down and none is longer for it.
        """
        w = torch.tensor([0.0 if value is None else value for value in given], dtype=torch.float64, device="cpu")
        free = [i for i, value in enumerate(given) if value is None]
        if free:
            matrix = self._positive() + self.damping
            rest = self.slope[free] + matrix[free] @ w
            w[free] = -(torch.linalg.pinv(matrix[free][:, free], hermitian=True) @ rest)
        return w

    def _positive(self) -> Tensor:
        """V^T |C| V, of C's part in the span of V; the lengths are those of the damping. V^T C V where C is positive.
        """
        lengths = self.damping.diagonal().sqrt()
        scale = torch.where(lengths > 0, 1 / lengths, 0.0)  # directions as long as each other, else one is rounding
        both = torch.outer(scale, scale)
        metric = self.damping * both
        values, vectors = torch.linalg.eigh(metric)
        kept = values > torch.finfo(torch.float64).eps * len(values)
        units = vectors[:, kept] / values[kept].sqrt()
        bends, turns = torch.linalg.eigh(units.t() @ (self.curvature * both) @ units)
        if not (bends < 0).any():
            return self.curvature
        back = lengths.unsqueeze(1) * (metric @ units @ turns)
        return (back * bends.abs()) @ back.t()

    def change(self, w: Tensor) -> float:
        """q(w) without damping: the change of L that the model predicts."""
        return float(w @ self.curvature @ w / 2 + self.slope @ w)


class QuadraticModel:
    """Products with a model's exact GGN over a batch, of a few vectors at once."""

    def __init__(self, model: nn.Module, loss: Any, seed: int, together: Together) -> None:
        self.model, self.loss, self.seed, self.together = model, loss, seed, together
        self._products: dict[tuple[str, ...], Products] = {}

    def along(self, batch: tuple[Any, ...], directions: Sequence[Mapping[str, Tensor]], gradient: Gradient,
              damping: Mapping[str, float], l2: Mapping[str, float], step: int) -> Quadratic:
        """q along k directions, {name: [*theta]} each; damping and l2 by parameter.

        A model with dropout draws masks of its own for it in each step: its GGN is that of another sub-network than
        the gradient's, and the same in expectation.
        """
        names, size = tuple(directions[0]), len(directions)
        start = torch.zeros(size, size, dtype=torch.float64, device=directions[0][names[0]].device)
        curvature = self.together.total(lambda: self._curvature(batch, names, directions, step), start)
        damped, slope = torch.zeros_like(start), torch.zeros_like(start[0])
        for name in names:
            products = gram([*(direction[name] for direction in directions), gradient[name]])
            squares = products[:size, :size]
            curvature += l2[name] * squares
            damped += damping[name] * squares
            slope += products[:size, size]
        return Quadratic((curvature + curvature.t()).cpu() / 2, damped.cpu(), slope.cpu())

    def _curvature(self, batch: tuple[Any, ...], names: tuple[str, ...],
                   directions: Sequence[Mapping[str, Tensor]], step: int) -> Tensor:
        """V^T C V of this rank's part of the batch, [k, k]."""
        vectors = [[direction[name] for name in names] for direction in directions]
        return self._of(names).inner(step, check_batch(self.model, batch), vectors)

    def _of(self, names: tuple[str, ...]) -> Products:
        if names not in self._products:
            self._products[names] = Products(Passes(self.model, self.loss, names, self.seed), LossHessian(), 2)
        return self._products[names]
