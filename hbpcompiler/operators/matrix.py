"""What eigenvalues and estimates ask of an operator."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Matrix(Protocol):
    """A symmetric matrix that is known by its products."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def __matmul__(self, vectors: Any) -> Any: ...

    def to_dense(self, most: int = ...) -> Tensor: ...

    def to_dict(self, vectors: Tensor) -> dict[str, Tensor]: ...

    def generator(self, what: str) -> torch.Generator: ...
