"""Operations that rewritings of a graph write and look for, by what they mean: outside rule files nothing names one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Written:
    """An operation with its attributes, as yet without tensors."""

    target: str
    overload: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


# -- arithmetic ------------------------------------------------------------------------------------------------------

SUM, MEAN, PRODUCT, QUOTIENT = "aten.sum", "aten.mean", "aten.mul", "aten.div"
MULTIPLES = (PRODUCT, QUOTIENT)
"""Linear in their first input; a product in its second, too. A quotient with a rounding_mode is none."""
INNER_PRODUCTS = ("aten.matmul", "aten.dot", "aten.mv", "aten.vdot")
"""Of two vectors each gives the sum of their products."""
NORM, SQUARE, POWER = "aten.linalg_vector_norm", "aten.square", "aten.pow"


def is_square(target: str, attributes: Mapping[str, Any]) -> bool:
    return target == SQUARE or (target == POWER and attributes.get("exponent") == 2)


def factor_of(target: str, attributes: Mapping[str, Any]) -> float | None:
    """By which number an operation multiplies its one tensor; None if it does something else."""
    if target in ("aten.neg", "aten.negative"):
        return -1.0
    number = attributes.get("other")
    if target not in MULTIPLES or isinstance(number, bool) or not isinstance(number, int | float) or (
            attributes.get("rounding_mode") is not None):
        return None
    return number if target == PRODUCT else 1 / number if number else None


def squared() -> Written:
    return Written(POWER, "Tensor_Scalar", {"exponent": 2})


def axes_of_root_of_squares(target: str, attributes: Mapping[str, Any], rank: int,
                            dtype: torch.dtype) -> list[int] | None:
    """Over which of so many axes a Euclidean norm is taken, in the dtype of its input; None if it is none."""
    if target != NORM or attributes.get("ord", 2) != 2 or attributes.get("dtype") not in (None, dtype):
        return None
    given = attributes.get("dim")
    given = [given] if isinstance(given, int) else given or range(rank)
    return sorted({axis % max(rank, 1) for axis in given})


def reduced(kind: str, axes: Sequence[int] | None = None, keepdim: bool = False) -> Written:
    """The SUM or MEAN over these axes, which go, or are 1; None: over all."""
    if axes is None:
        return Written(kind, "", {"dtype": None})
    overload = "dim_IntList" if kind == SUM else "dim"
    return Written(kind, overload, {"dim": list(axes), "keepdim": keepdim, "dtype": None})


def added() -> Written:
    return Written("aten.add", "Tensor", {"alpha": 1})


def multiple(kind: str, factor: float | None = None) -> Written:
    """A PRODUCT with, or a QUOTIENT by, a number; None: its second input is a tensor."""
    return Written(kind, "Tensor", {} if factor is None else {"other": factor})


def is_zero_multiple(target: str, attributes: Mapping[str, Any]) -> bool:
    """Whether it is a product with the number 0."""
    factor = attributes.get("other")
    return target == PRODUCT and isinstance(factor, int | float) and factor == 0


LINEAR = Written("aten.linear")
"""x W^T + b, of "input", "weight" and perhaps "bias"."""
MATRIX_PRODUCT = Written("aten.matmul")
MATRIX_PRODUCTS = {"aten.matmul": ("self", "other"), "aten.mm": ("self", "mat2"), "aten.addmm": ("mat1", "mat2")}
"""The two that are multiplied; addmm adds beta times a third to alpha times their product."""
TRANSPOSES = ("aten.t", "aten.transpose", "aten.permute")
"""Of a matrix; the latter two may also leave it as it is."""
DIAGONAL = "aten.diagonal"

# -- axes ------------------------------------------------------------------------------------------------------------

END_TO_END, ENTRY, PART, PERMUTED = "aten.cat", "aten.select", "aten.slice", "aten.permute"
RESHAPED = frozenset({
    "aten.view", "aten._unsafe_view", "aten.reshape", "aten.flatten", "aten.unflatten", "aten.unsqueeze",
    "aten.squeeze", "aten.clone", "aten.contiguous", "aten.alias",
})
"""Their results have the same numbers in the same order."""
MOVED = RESHAPED | {END_TO_END, ENTRY, PART, PERMUTED, "aten.stack", "aten.transpose", "aten.t", "aten.movedim",
                    "aten.expand", "aten.expand_as", "aten.flip", "aten.roll", "aten.repeat"}
"""Each number of their results is one of their inputs', wherever it stands."""


def entry(axis: int, place: int) -> Written:
    return Written(ENTRY, "int", {"dim": axis, "index": place})


def transposed(first: int, second: int) -> Written:
    return Written("aten.transpose", "int", {"dim0": first, "dim1": second})


def permuted(axes: Sequence[int]) -> Written:
    return Written(PERMUTED, "", {"dims": list(axes)})


def merged(first: int, last: int) -> Written:
    """The axes from the first to the last are one."""
    return Written("aten.flatten", "using_ints", {"start_dim": first, "end_dim": last})


def with_axis(axis: int) -> Written:
    """One more axis, of length one."""
    return Written("aten.unsqueeze", "", {"dim": axis})


def in_shape(shape: Sequence[Any]) -> Written:
    """The same numbers in their order, on other axes."""
    return Written("aten.reshape", "", {"shape": list(shape)})


def without_axis(axis: int) -> Written:
    """An axis of length one is gone."""
    return Written("aten.squeeze", "dim", {"dim": axis})


WITHOUT_ONES = Written("aten.squeeze")
"""All axes of length one are gone: a number as it is."""


def expanded(size: Sequence[Any]) -> Written:
    return Written("aten.expand", "", {"size": list(size), "implicit": False})


SHAPED_AS = Written("aten.expand_as")
"""In the shape of "other", whose samples a value without any gets."""


def in_order() -> Written:
    """A copy, its axes in order in memory."""
    return Written("aten.clone", "", {"memory_format": torch.contiguous_format})


# -- numbers of another kind -----------------------------------------------------------------------------------------

AS_PAIRS, OF_PAIRS = Written("aten.view_as_real"), Written("aten.view_as_complex")
PHYSICAL = {"aten._conj": "aten.conj_physical", "aten._neg_view": "aten.neg"}
"""What torch does by a flag of a tensor, and the same by numbers."""
WRITTEN_OVER, COPIED = ("aten.slice_scatter", "aten.select_scatter"), "aten.copy"
"""What `x[:, :3] = y` is in a graph: torch does not differentiate it for complex numbers. The former are two tensors
of one kind, "dim" counts their axes; the latter is "src" in the dtype and the shape of another."""


def cast(dtype: torch.dtype) -> Written:
    return Written("aten.to", "dtype", {"dtype": dtype, "non_blocking": False, "copy": False, "memory_format": None})


def zeros() -> Written:
    """In the shape and dtype of its input."""
    return Written("aten.zeros_like", "", dict.fromkeys(("dtype", "layout", "device", "pin_memory", "memory_format")))
