"""Where a block's parameters lie in the vectors that the block multiplies: how theta is numbered by outputs and inputs.

A weight's Kronecker factors are B, over the features of the layer's outputs, and A, over those of its inputs. How a
parameter [*theta] is laid out over the two is its rule's einsum: `OUTPUTS_FIRST` for [out, in] (linear layers) and
[out, in, *kernel] (convolutions), `INPUTS_FIRST` for [in, out] (x @ W), [in, out, *kernel] (transposed convolutions)
and [rows, features] (embeddings).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hbpcompiler.values import OUTPUTS_FIRST

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place(ABC):
    """The parameters of one block, by name, with their shapes."""

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]

    @property
    def numels(self) -> tuple[int, ...]:
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def title(self) -> str:
        """The parameters as a message names them."""
        return " with ".join(map(repr, self.names))

    @abstractmethod
    def gather(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """{name: [F, *theta]} -> [F, *own]: as the block multiplies them."""

    @abstractmethod
    def scatter(self, vectors: Tensor) -> dict[str, Tensor]:
        """The inverse of `gather`."""

    def flat(self, vectors: Tensor) -> Tensor:
        """[F, *own] -> [F, n]: the parameters one after the other, each flattened in its own order."""
        return rows(self.scatter(vectors))

    def unflat(self, vectors: Tensor) -> Tensor:
        """The inverse of `flat`."""
        parts = vectors.split(self.numels, 1)
        return self.gather({name: part.reshape(len(part), *shape) for name, part, shape in
                            zip(self.names, parts, self.shapes, strict=True)})


def rows(vectors: Mapping[str, Tensor]) -> Tensor:
    """{name: [F, *theta]} -> [F, n], in the order of the names."""
    return torch.cat([part.reshape(len(part), math.prod(part.shape[1:])) for part in vectors.values()], 1)


@dataclass(frozen=True)
class Flat(Place):
    """All entries in a row, [F, n]."""

    def gather(self, vectors: Mapping[str, Tensor]) -> Tensor:
        return rows({name: vectors[name] for name in self.names})

    def scatter(self, vectors: Tensor) -> dict[str, Tensor]:
        parts = vectors.split(self.numels, 1)
        return {name: part.reshape(len(part), *shape) for name, part, shape in
                zip(self.names, parts, self.shapes, strict=True)}


@dataclass(frozen=True)
class Matrix(Place):
    """A matrix for each group, [F, groups, outputs, inputs]; a second parameter is a bias, the last of the inputs."""

    groups: int
    outputs: int
    inputs: int
    layout: str

    def gather(self, vectors: Mapping[str, Tensor]) -> Tensor:
        weight = vectors[self.names[0]]
        inputs = self.inputs - len(self.names) + 1
        if self.layout == OUTPUTS_FIRST:
            matrix = weight.reshape(len(weight), self.groups, self.outputs, inputs)
        else:
            matrix = weight.reshape(len(weight), self.groups, inputs, self.outputs).mT
        if len(self.names) == 1:
            return matrix
        bias = vectors[self.names[1]].reshape(len(weight), self.groups, self.outputs, 1)
        return torch.cat([matrix, bias], 3)

    def scatter(self, vectors: Tensor) -> dict[str, Tensor]:
        found = {}
        if len(self.names) > 1:
            found[self.names[1]] = vectors[..., -1].reshape(len(vectors), *self.shapes[1])
            vectors = vectors[..., :-1]
        matrix = vectors if self.layout == OUTPUTS_FIRST else vectors.mT
        found[self.names[0]] = matrix.reshape(len(matrix), *self.shapes[0])
        return {name: found[name] for name in self.names}
