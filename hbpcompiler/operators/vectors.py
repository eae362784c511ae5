"""What an operator is multiplied with: dicts by parameter, lists of tensors, flat vectors, matrices of columns.

All become one tensor [F, *theta] a parameter, F vectors side by side, and products come back as what was given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.trace.checks import shown
from hbpcompiler.errors import InputError, InputTypeError, ModelError, listing

Columns = list[Tensor]
"""F vectors: [F, *theta] for each parameter, in their order."""
PIECE = 2**18
"""Entries of a vector that are multiplied in float64 at once."""


@dataclass(frozen=True)
class Vectors:
    """What an operator was given."""

    columns: Columns
    single: bool
    """Whether it was one vector, without an axis F."""
    back: Callable[[Columns], Any]
    """Makes of products what was given."""


@dataclass(frozen=True)
class Space:
    """The parameters of an operator, in order; D numbers in all."""

    shapes: Mapping[str, torch.Size]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor]) -> Space:
        """Raises ModelError for parameters of several dtypes or devices."""
        kinds = {(parameter.dtype, parameter.device) for parameter in parameters.values()}
        if len(kinds) > 1:
            found = [f"{name}: {parameter.dtype} on {parameter.device}" for name, parameter in parameters.items()]
            raise ModelError(listing("an operator needs parameters of one dtype on one device, but there are:", found))
        ((dtype, device),) = kinds
        return cls({name: parameter.shape for name, parameter in parameters.items()}, dtype, device)

    @property
    def size(self) -> int:
        """D."""
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        return [shape.numel() for shape in self.shapes.values()]

    def vectors(self, given: Any) -> Vectors:
        """Raises InputError listing all that does not fit."""
        if isinstance(given, Tensor):
            return self._flat(given)
        if isinstance(given, Mapping):
            return self._named(given)
        if isinstance(given, list | tuple):
            return self._listed(given)
        raise InputTypeError("an operator is multiplied with a dict of tensors by parameter, a list of tensors, a "
                             f"vector [D] or a matrix [D, F], not {type(given).__name__}")

    def split(self, flat: Tensor) -> Columns:
        """[D, F] -> [F, *theta] each."""
        parts = map(_in_pairs, flat.T.split(self.sizes, 1))
        return [part.reshape(len(part), *shape) for part, shape in zip(parts, self.shapes.values(), strict=True)]

    def joined(self, columns: Columns) -> Tensor:
        """[F, *theta] each -> [D, F]."""
        flat = [column.reshape(len(column), size) for column, size in zip(columns, self.sizes, strict=True)]
        return torch.cat(flat, 1).T

    def named(self, columns: Columns) -> dict[str, Tensor]:
        return dict(zip(self.shapes, columns, strict=True))

    def _flat(self, given: Tensor) -> Vectors:
        findings = self._wrong_kind("the vector", given)
        if given.dim() not in (1, 2) or given.shape[0] != self.size:
            findings.append(f"it has shape {shown(given)}, not [{self.size}] or [{self.size}, F]")
        self._raise(findings)
        if given.dim() == 1:
            return Vectors(self.split(given.detach().unsqueeze(1)), True, lambda out: self.joined(out).squeeze(1))
        return Vectors(self.split(given.detach()), False, self.joined)

    def _named(self, given: Mapping[str, Any]) -> Vectors:
        findings = [f"{name!r} is missing" for name in self.shapes if name not in given]
        findings += [f"{name!r} is no parameter of this operator" for name in given if name not in self.shapes]
        columns, single = self._checked({name: given[name] for name in self.shapes if name in given}, findings)
        return Vectors(columns, single, lambda products: self.named(_as_given(products, single)))

    def _listed(self, given: Sequence[Any]) -> Vectors:
        if len(given) != len(self.shapes):
            raise InputError(f"a list of {len(given)} tensors was given for the operator's {len(self.shapes)} "
                             f"parameters, {', '.join(self.shapes)}")
        columns, single = self._checked(dict(zip(self.shapes, given, strict=True)), [])
        kind = tuple if isinstance(given, tuple) else list
        return Vectors(columns, single, lambda products: kind(_as_given(products, single)))

    def _checked(self, given: Mapping[str, Any], findings: list[str]) -> tuple[Columns, bool]:
        """[F, *theta] each, and whether they came as single vectors, [*theta]."""
        counts: dict[int | None, list[str]] = {}
        for name, tensor in given.items():
            wrong = self._wrong_kind(repr(name), tensor)
            findings += wrong
            if not wrong:
                shape = self.shapes[name]
                axes = tensor.dim() - len(shape)
                if axes not in (0, 1) or tensor.shape[axes:] != shape:
                    fits = ", ".join(["F", *map(str, shape)])
                    findings.append(f"{name!r} has shape {shown(tensor)}, not {list(shape)} or [{fits}]")
                else:
                    counts.setdefault(len(tensor) if axes else None, []).append(name)
        if len(counts) > 1:
            said = [f"{'one vector' if count is None else f'F = {count}'} for {', '.join(names)}"
                    for count, names in counts.items()]
            findings.append(f"all tensors must hold equally many vectors, but there are {'; '.join(said)}")
        self._raise(findings)
        single = None in counts
        tensors = [tensor.detach() for tensor in given.values()]
        return [tensor.unsqueeze(0) for tensor in tensors] if single else tensors, single

    def _wrong_kind(self, name: str, tensor: Any) -> list[str]:
        if not isinstance(tensor, Tensor):
            return [f"{name} is no tensor but {type(tensor).__name__}"]
        findings = []
        if tensor.dtype != self.dtype:
            findings.append(f"{name} has dtype {tensor.dtype}, the parameters have {self.dtype}")
        if tensor.device != self.device:
            findings.append(f"{name} is on device {tensor.device}, the parameters on {self.device}")
        return findings

    def _raise(self, findings: list[str]) -> None:
        if findings:
            raise InputError(listing(f"this cannot be multiplied with an operator of shape [{self.size}, {self.size}]:",
                                     findings))


def _in_pairs(part: Tensor) -> Tensor:
    """In memory that torch.view_as_complex can read, as it does of the parameter itself: it takes pairs side by side
    that begin at an even place."""
    return part.clone(memory_format=torch.contiguous_format) if part.storage_offset() % 2 else part.contiguous()


def _as_given(columns: Columns, single: bool) -> Columns:
    return [column.squeeze(0) for column in columns] if single else columns


def inner_products(left: Columns, right: Columns) -> Tensor:
    """sum over the tensors of left[f] . right[k], [F, K] in float64, a piece at a time: no copies of all in float64."""
    total = torch.zeros(len(left[0]), len(right[0]), dtype=torch.float64, device=left[0].device)
    for one, other in zip(left, right, strict=True):
        rows = one.reshape(len(one), -1), other.reshape(len(other), -1)  # a number has no axis to flatten
        pieces = zip(*(each.split(PIECE, 1) for each in rows), strict=True)
        for own, its in pieces:
            total += own.double() @ its.double().t()
    return total


def gram(tensors: Sequence[Tensor]) -> Tensor:
    """The inner products of F tensors of one shape, [F, F] in float64, a piece at a time."""
    total = torch.zeros(len(tensors), len(tensors), dtype=torch.float64, device=tensors[0].device)
    for pieces in zip(*(tensor.flatten().split(PIECE) for tensor in tensors), strict=True):
        rows = torch.stack([piece.double() for piece in pieces])
        total += rows @ rows.t()
    return total


def inner(left: Tensor, right: Tensor) -> Tensor:
    """The inner product of two tensors of one shape, a number in float64 where they are."""
    return inner_products([left.unsqueeze(0)], [right.unsqueeze(0)]).squeeze()
