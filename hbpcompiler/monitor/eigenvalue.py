"""The Hessian's largest algebraic eigenvalue by Lanczos' method, begun with the last vector found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hbpcompiler.compiler.prove.double import derivatives
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.operators.passes import Passes
from hbpcompiler.operators.products import pulled

BASIS = 40
"""Vectors at a time; then the search begins again with the best combination of them."""
TOLERANCE = 1e-3
"""Of |H v - lambda v|, relative to the eigenvalue; its own error is of second order in that where it stands alone."""
MOST_PRODUCTS = 120
NUDGE = 1e-2
"""Of a random vector in the next start: an eigenvector that is no longer the largest would end the search."""


class Found(NamedTuple):
    """None where it did not converge: then the vector is the best one so far."""

    value: float | None
    vector: Tensor


def largest_eigenvalue(product: Callable[[Tensor], Tensor], start: Tensor, tolerance: float = TOLERANCE,
                       most: int = MOST_PRODUCTS) -> Found:
    """Of a symmetric matrix that is known by its products with vectors [D]."""
    vector, used = start / torch.linalg.vector_norm(start), 0
    while True:
        basis: list[Tensor] = []
        diagonal: list[float] = []
        beside: list[float] = []
        new = vector
        while True:
            basis.append(new)
            image = product(new)
            used += 1
            diagonal.append(float(image @ new))
            if not torch.tensor(diagonal[-1], device="cpu").isfinite():
                return Found(float("nan"), start)
            image = _orthogonal(image, basis)
            rest = float(torch.linalg.vector_norm(image))
            values, vectors = torch.linalg.eigh(_tridiagonal(diagonal, beside))
            value, weights = float(values[-1]), vectors[:, -1]
            scale = float(values.abs().max())
            done = rest * abs(float(weights[-1])) <= tolerance * max(abs(value), 1e-3 * scale)
            if done or rest <= 1e-12 * scale or len(basis) == min(BASIS, len(start)) or used == most:
                break
            beside.append(rest)
            new = image / rest
        vector = torch.stack(basis, 1) @ weights.to(start.device, start.dtype)
        vector = vector / torch.linalg.vector_norm(vector)
        if done or rest <= 1e-12 * scale or len(basis) == len(start):
            return Found(value, vector)
        if used >= most:
            return Found(None, vector)


def _orthogonal(image: Tensor, basis: Sequence[Tensor]) -> Tensor:
    """To all of them; twice, for rounding's sake."""
    for _ in range(2):
        for other in basis:
            image = image - (image @ other) * other
    return image


def _tridiagonal(diagonal: Sequence[float], beside: Sequence[float]) -> Tensor:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64, device="cpu"))
    if beside:
        off = torch.diag(torch.tensor(beside, dtype=torch.float64, device="cpu"), 1)
        matrix = matrix + off + off.t()
    return matrix


class Sharpness:
    """The search on one batch after the other, each begun where the last one ended."""

    def __init__(self, model: Any, loss: Any, seed: int, tolerance: float = TOLERANCE) -> None:
        self.model, self.loss, self.seed, self.tolerance = model, loss, seed, tolerance
        self.last: dict[str, Tensor] = {}
        """The last vector, by parameter name."""

    def at(self, batch: Batch, step: int) -> float | None:
        """For the parameters as they are now. Raises RuntimeError for what torch does not differentiate twice."""
        names = tuple(name for name, parameter in self.model.named_parameters() if parameter.requires_grad)
        passes = Passes(self.model, self.loss, names, self.seed)

        def search(run: Any) -> Found:
            at = list(variables.values())
            gradient = derivatives(run.loss, at, keep=True)

            def product(vector: Tensor) -> Tensor:
                pieces = vector.split([tensor.numel() for tensor in at])
                columns = [piece.reshape(1, *tensor.shape) for piece, tensor in zip(pieces, at, strict=True)]
                return torch.cat([part.flatten() for part in pulled(gradient, at, columns, False)])

            return largest_eigenvalue(product, self._start(variables, step), self.tolerance)

        with passes.careful(), passes.variables() as variables, passes.drawn(step, batch):
            found = passes.run(batch, search)
        pieces = found.vector.split([tensor.numel() for tensor in variables.values()])
        self.last = {name: piece.reshape(tensor.shape)
                     for (name, tensor), piece in zip(variables.items(), pieces, strict=True)}
        return found.value

    def _start(self, variables: dict[str, Tensor], step: int) -> Tensor:
        """The last vector, with a little of a random one, which depends on the seed and the step alone."""
        generator = torch.Generator().manual_seed(self.seed + step)
        pieces = []
        for tensor in variables.values():
            piece = torch.randn(tensor.shape, generator=generator, dtype=torch.float64, device="cpu")
            pieces.append(piece.to(tensor.device, tensor.dtype).flatten())
        noise = torch.cat(pieces)
        noise = noise / torch.linalg.vector_norm(noise)
        if set(self.last) != set(variables):
            return noise
        last = torch.cat([self.last[name].to(tensor.device, tensor.dtype).flatten()
                          for name, tensor in variables.items()])
        return last + NUDGE * noise
