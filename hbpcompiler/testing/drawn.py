"""Random sums of a residual's columns: what their second moment is, found without drawing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hbpcompiler.rule import Factor, Noise, Op
from hbpcompiler.testing.compare import close, flat
from hbpcompiler.testing.setting import SAMPLES


def drawn_matrix(residual: Factor, op: Op, names: list[str], gradient: Tensor, where: str) -> Tensor:
    """The residual [N, h, h] that `residual.drawn` has in expectation: noise of which one number is 1 gives one column.

    Raises AssertionError if the sums are not linear in the noise.
    """
    count = _numbers(residual, op, gradient)
    columns = _drawn(residual, op, names, gradient, torch.eye(count, dtype=gradient.dtype).expand(SAMPLES, -1, -1))
    noise = torch.randn(SAMPLES, 2, count, dtype=gradient.dtype)
    sums = _drawn(residual, op, names, gradient, noise)
    for sign, own, found in zip("+-", columns.chunk(2, 1), sums.chunk(2, 1), strict=True):
        close(found, noise @ own, f"{where}: random sums, {sign}")
    plus, minus = columns.chunk(2, 1)
    return plus.mT @ plus - minus.mT @ minus


def _numbers(residual: Factor, op: Op, gradient: Tensor) -> int:
    """How many random signs a sum takes."""
    asked: list[tuple[int, ...]] = []

    def noise(*shape: int) -> Tensor:
        asked.append(shape)
        return torch.ones(SAMPLES, 1, *shape, dtype=gradient.dtype)

    assert residual.drawn is not None
    residual.drawn(op, gradient, noise)
    return sum(math.prod(shape) for shape in asked)


def _drawn(residual: Factor, op: Op, names: list[str], gradient: Tensor, numbers: Tensor) -> Tensor:
    """Sums [N, 2 M, h] by these numbers [N, M, all], dealt out as they are asked for."""

    def dealt() -> Noise:
        start = 0

        def noise(*shape: int) -> Tensor:
            nonlocal start
            first, start = start, start + math.prod(shape)
            return numbers[:, :, first:start].reshape(*numbers.shape[:2], *shape)

        return noise

    assert residual.drawn is not None
    found = residual.drawn(op, gradient, dealt())
    for name in names:
        assert found[name].shape == (SAMPLES, 2 * numbers.shape[1], *op.shape(name)), f"drawn: {found[name].shape}"
    return torch.cat([flat(found[name]) for name in names], -1)
