"""What all blocks have in common: each is Q diag(eigenvalues) Q^T, and so is every function of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.curvature.place import Place
from hbpcompiler.curvature.symmetric import Symmetric

EXACT, PI = "exact", "pi"
Times = Callable[[Tensor, Tensor], Tensor]
"""vectors @ matrix: the widest products, for which a caller may know a faster kernel."""
SPLITS = (EXACT, PI)
"""Of the damping: added to the eigenvalues of the block, or shared by its two factors (see `Kronecker`)."""


class Block(ABC):
    """One block of a curvature matrix, over one parameter (or a weight and its bias together).

    Vectors are [F, *own]: F of them, laid out as `place` says. The eigenvalues have that shape without F, [*own], and
    belong to the eigenvectors that `turned` sees a vector in.
    """

    def __init__(self, place: Place, quantity: str) -> None:
        self.place = place
        self.quantity = quantity
        """What it was made of, for messages."""

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters."""
        return self.place.names

    @property
    def title(self) -> str:
        """As a message names the block."""
        return f"{self.place.title} ({self.quantity})"

    # -- what the kinds of blocks are ----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def eigenvalues(self) -> Tensor:
        """[*own], float64; what rounding put below zero is zero."""

    @property
    @abstractmethod
    def is_singular(self) -> bool:
        """Whether an eigenvalue cannot be told from zero."""

    @abstractmethod
    def product(self, vectors: Tensor, times: Times = torch.matmul) -> Tensor:
        """The block times each vector, without eigenvectors where it can; `times` multiplies by inputs' matrices."""

    @abstractmethod
    def turned(self, vectors: Tensor) -> Tensor:
        """Q^T times each vector, in float64."""

    @abstractmethod
    def turned_back(self, vectors: Tensor) -> Tensor:
        """Q times each vector, in float64."""

    @abstractmethod
    def power(self, exponent: float, damping: float, split: str) -> Block:
        """(block + damping) ** exponent, in the block's own dtype."""

    def quick_inverse(self, damping: float, split: str, into: Mapping[str, Tensor]) -> Block | None:
        """(block + damping)^-1 without eigenvectors, which take longer; None where there is no such way, where they are
        known, and where nothing else tells a small eigenvalue from rounding. It is written into these `tensors` of
        another, where they fit; they may be anything then, whatever comes of it."""
        return None

    @abstractmethod
    def trace(self) -> Tensor:
        """A number, float64."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """[*own]"""

    @abstractmethod
    def scaled(self, factor: float) -> Block:
        """Times a positive number."""

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, Tensor]:
        """What it consists of, by the names of its attributes."""

    @abstractmethod
    def to(self, device: torch.device | None, dtype: torch.dtype | None) -> Block:
        """A copy elsewhere."""

    @property
    def symmetric_matrices(self) -> tuple[Symmetric, ...]:
        """Those whose eigenvectors it takes."""
        return ()

    # -- what follows --------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.tensors.values())).dtype

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    def damped(self, damping: float, split: str) -> Tensor:
        """The eigenvalues of block + damping, [*own]."""
        return self.eigenvalues + damping

    def needed(self, split: str) -> float:
        """A positive definite sum takes more damping than this: 0 but for an indefinite block."""
        return max(0.0, -self.eigenvalues.min().item())

    def obstacle(self, damping: float, split: str, invertible: bool) -> str:
        """Why block + damping is not positive definite (or, unless `invertible`, semidefinite); "" if it is."""
        needed = self.needed(split)
        if needed > 0 and damping <= needed:
            return (f"{self.title} is indefinite, with eigenvalues from {self.eigenvalues.min().item():.3g} to "
                    f"{self.eigenvalues.max().item():.3g}; a damping above {needed:.3g} would do")
        if invertible and damping == 0 and self.is_singular:
            return (f"{self.title} is singular: its eigenvalues go from {self.eigenvalues.min().item():.3g} to "
                    f"{self.eigenvalues.max().item():.3g}; give a positive damping")
        return ""

    def function(self, vectors: Tensor, values: Tensor) -> Tensor:
        """Q diag(values) Q^T times each vector, computed in float64."""
        return self.turned_back(values * self.turned(vectors))

    def to_dense(self) -> Tensor:
        """[n, n], of the parameters flattened in their own order."""
        count = sum(self.place.numels)
        units = torch.eye(count, dtype=self.dtype, device=self.device)
        return self.place.flat(self.product(self.place.unflat(units)))

    def __repr__(self) -> str:
        shapes: Any = {name: list(tensor.shape) for name, tensor in self.tensors.items()}
        return f"{type(self).__name__}({self.title}, {shapes}, {self.dtype})"
