"""The optimizers and their grids: as many points for momentum SGD and Adam as for those with curvature."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import hbpcompiler as hbp

Point = tuple[tuple[str, float], ...]
"""One point of a grid: names and numbers."""
Step = Callable[[Tensor, Tensor], Tensor]
"""One step on a batch; returns the loss before it."""

TENTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
PAPER_GRID = {"lr": TENTHS, "damping": (*TENTHS, 10.0)}
"""Appendix C.2."""
PAPER_COARSE = {"lr": (1e-1, 1.0), "damping": (1e-2, 1e-1, 1.0)}


FREE_GRID = {"damping": PAPER_GRID["damping"]}
FREE_COARSE = {"damping": (1e-1, 1.0, 10.0)}


def halves(first: float, count: int) -> tuple[float, ...]:
    """Two for each power of ten, beginning at 10^first."""
    return tuple(float(f"{10 ** (first + k / 2):.2g}") for k in range(count))


@dataclass(frozen=True)
class Method:
    """An optimizer and what is tuned of it."""

    title: str
    colour: str
    make: Callable[[nn.Module, nn.Module], torch.optim.Optimizer]
    grid: Mapping[str, Sequence[float]]
    coarse: Mapping[str, Sequence[float]]
    """Some of the grid's values, for machines with little time."""
    numbers: Callable[[dict[str, float]], dict[str, Any]] = dict
    """The numbers of a parameter group, from those of a point."""
    curvature: bool = True

    def points(self, coarse: bool) -> list[Point]:
        axes = self.coarse if coarse else self.grid
        return [tuple(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    def neighbours(self, point: Point) -> list[Point]:
        """The grid's next points along each axis."""
        found = []
        for place, (name, value) in enumerate(point):
            axis = list(self.grid[name])
            here = axis.index(value)
            for other in axis[max(here - 1, 0): here] + axis[here + 1: here + 2]:
                found.append((*point[:place], (name, other), *point[place + 1:]))
        return found

    def interior(self, point: Point) -> bool:
        """Whether there are values on both sides of each of the point's."""
        return all(value not in (self.grid[name][0], self.grid[name][-1]) for name, value in point)

    def step(self, model: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
        if self.curvature:
            return optimizer.step  # type: ignore[return-value]  # those with curvature take the batch

        def by_autograd(X: Tensor, y: Tensor) -> Tensor:
            optimizer.zero_grad()
            value: Tensor = loss(model(X), y)
            value.backward()
            optimizer.step()
            return value.detach()

        return by_autograd


def kfac(curvature: str) -> Callable[[nn.Module, nn.Module], torch.optim.Optimizer]:
    """Equation 27 with 28 and 29: this batch's factors alone, no momentum."""
    def make(model: nn.Module, loss: nn.Module) -> torch.optim.Optimizer:
        return hbp.optim.KFAC(model, loss, lr=1.0, momentum=0.0, damping=1.0, curvature=curvature, ema=0.0,
                              update_every=1, invert_every=1, adapt_damping=False)

    return make


def diagonal(curvature: str) -> Callable[[nn.Module, nn.Module], torch.optim.Optimizer]:
    """Equation 27."""
    def make(model: nn.Module, loss: nn.Module) -> torch.optim.Optimizer:
        return hbp.optim.Diagonal(model, loss, lr=1.0, rule="damped", curvature=curvature, momentum=0.0, damping=1.0,
                                  ema=0.0, update_every=1)

    return make


def by_its_model(least_damping: float) -> Callable[[nn.Module, nn.Module], torch.optim.Optimizer]:
    """Step and momentum from the quadratic model, a damping that adapts and does not fall below the least."""
    def make(model: nn.Module, loss: nn.Module) -> torch.optim.Optimizer:
        return hbp.optim.KFAC(model, loss, lr=None, momentum=None, damping=1.0, ema=0.95, update_every=1,
                              invert_every=5, adapt_damping=True, least_damping=least_damping)

    return make


def of_paper(title: str, colour: str, make: Callable[[nn.Module, nn.Module], torch.optim.Optimizer],
             coarse: Mapping[str, Sequence[float]] = PAPER_COARSE) -> Method:
    return Method(title, colour, make, PAPER_GRID, coarse)


def newton(model: nn.Module, loss: nn.Module) -> torch.optim.Optimizer:
    """With all eigenvectors of the sampled GGN and a constant damping, which is a number of the group here, as it is
    tuned."""
    def constant(eigenvalues: Tensor, slopes: Tensor, curvatures: Tensor) -> Tensor:
        return torch.full_like(eigenvalues, optimizer.param_groups[0]["damping"])

    optimizer = hbp.optim.Newton(model, loss, lr=1.0, damping=constant)
    return optimizer


NOISE_GRID = {"lr": (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)}
NOISE_COARSE = {"lr": (1e-2, 1e-1, 1.0)}
DIAGONAL_COARSE = {"lr": (1e-2, 1e-1), "damping": (1e-2, 1e-1, 1.0)}

METHODS: dict[str, Method] = {
    "momentum": Method(
        "Momentum", "#444444", lambda model, loss: torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9),
        {"lr": halves(-4, 10), "momentum": (0.8, 0.9, 0.97)}, {"lr": halves(-1.5, 3), "momentum": (0.8, 0.9)},
        curvature=False),
    "adam": Method(
        "Adam", "#999999", lambda model, loss: torch.optim.Adam(model.parameters(), lr=1.0),
        {"lr": halves(-4.5, 10), "beta1": (0.8, 0.9, 0.97)}, {"lr": halves(-3, 3), "beta1": (0.8, 0.9)},
        lambda point: {"lr": point["lr"], "betas": (point["beta1"], 0.999)}, curvature=False),
    "diag_ggn": of_paper("DiagGGN", "#a6761d", diagonal("diag_ggn"), DIAGONAL_COARSE),
    "diag_ggn_mc": of_paper("DiagGGN-MC", "#e6ab02", diagonal("diag_ggn_mc"), DIAGONAL_COARSE),
    "kfac": of_paper("KFAC", "#d95f02", kfac("kfac")),
    "kflr": of_paper("KFLR", "#7570b3", kfac("kflr")),
    "kfra": of_paper("KFRA", "#66a61e", kfac("kfra")),
    "kfac_momentum": Method(
        "KFAC, averaged, momentum 0.9", "#e7298a", lambda model, loss: hbp.optim.KFAC(
            model, loss, lr=1.0, momentum=0.9, damping=1.0, ema=0.95, update_every=1, invert_every=5,
            norm_constraint=1e-2, adapt_damping=False),
        PAPER_GRID, PAPER_COARSE),
    "kfac_free": Method("KFAC, steps by its model", "#1b9e77", by_its_model(1e-3), FREE_GRID, FREE_COARSE),
    "kfac_unbounded": Method("KFAC, steps by its model, damping without a bound", "#a6cee3", by_its_model(1e-8),
                             FREE_GRID, FREE_COARSE),
    "ekfac": Method(
        "EKFAC, averaged, momentum 0.9", "#1f78b4", lambda model, loss: hbp.optim.EKFAC(
            model, loss, lr=1.0, momentum=0.9, damping=1.0, ema=0.95, update_every=1, invert_every=5,
            norm_constraint=1e-2, adapt_damping=False),
        PAPER_GRID, PAPER_COARSE),
    "sophia": Method(
        "Sophia", "#e31a1c", lambda model, loss: hbp.optim.Diagonal(model, loss, lr=1.0, rule="sophia"),
        {"lr": halves(-4.5, 6), "clip_scale": (1e-3, 1e-2, 0.05, 0.2, 1.0)},
        {"lr": halves(-3, 2), "clip_scale": (1e-2, 0.05, 0.2)}),
    "adahessian": Method(
        "AdaHessian", "#6a3d9a", lambda model, loss: hbp.optim.Diagonal(
            model, loss, lr=1.0, rule="adahessian", momentum=0.9, ema=0.999, update_every=1, eps=1e-4),
        {"lr": halves(-4.5, 10), "power": (0.5, 0.75, 1.0)}, {"lr": halves(-3, 3), "power": (0.5, 1.0)}),
    "block_newton": of_paper(
        "Block Newton", "#fb9a99", lambda model, loss: hbp.optim.BlockNewton(model, loss, lr=1.0, damping=1.0)),
    "newton": of_paper("Newton", "#8dd3c7", newton),
    "newton_noise": Method(
        "Newton, damping from noise", "#ccebc5",
        lambda model, loss: hbp.optim.Newton(model, loss, lr=1.0, damping="bootstrap"), NOISE_GRID, NOISE_COARSE),
}
"""Titles as in the paper where the optimizer is the paper's."""
