"""Curvature as plain tensors, numbers and texts, which torch.save writes and torch.load(weights_only=True) reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.curvature.block import Block
from hbpcompiler.curvature.elementary import Dense, Diagonal
from hbpcompiler.curvature.kronecker import EigenKronecker, Kronecker
from hbpcompiler.curvature.place import Flat, Matrix, Place
from hbpcompiler.curvature.symmetric import Symmetric, from_upper_triangle, upper_triangle
from hbpcompiler.errors import InputError
from hbpcompiler.values import LAYOUTS

FORMAT = "hbpcompiler curvature 1"


def state(blocks: Sequence[Block], dtypes: Mapping[str, torch.dtype | None], weights: str) -> dict[str, Any]:
    """See `Curvature.state_dict`; the parameters' dtypes by their names, in order."""
    return {"format": FORMAT, "names": list(dtypes), "dtypes": list(dtypes.values()),
            "weights": weights, "blocks": [_written(block) for block in blocks]}


def restored(given: Any) -> tuple[list[Block], list[str], dict[str, torch.dtype | None], str]:
    """What `state` was given, and the names. InputError for what is not a state, or not a whole one."""
    if not isinstance(given, Mapping) or given.get("format") != FORMAT:
        found = given.get("format") if isinstance(given, Mapping) else type(given).__name__
        raise InputError(f"this is no state of a curvature (its format is {found!r}, not {FORMAT!r})")
    try:
        blocks, names = [_read(entry) for entry in given["blocks"]], list(given["names"])
        dtypes = dict(zip(names, given.get("dtypes", [None] * len(names)), strict=True))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"the state of this curvature is damaged: {type(error).__name__}: {error}") from error
    if not blocks or sorted(names) != sorted(name for block in blocks for name in block.names):
        raise InputError("the state of this curvature is damaged: its blocks are not of the parameters that it names")
    return blocks, names, dtypes, str(given.get("weights", ""))


def _written(block: Block) -> dict[str, Any]:
    place = block.place
    entry: dict[str, Any] = {"kind": type(block).__name__, "quantity": block.quantity, "names": list(place.names),
                             "shapes": [list(shape) for shape in place.shapes]}
    if isinstance(place, Matrix):
        entry |= {"groups": place.groups, "outputs": place.outputs, "inputs": place.inputs, "layout": place.layout}
    if isinstance(block, Kronecker):
        return entry | {"A": upper_triangle(block.A), "B": upper_triangle(block.B),
                        "eps": [block.inputs.eps, block.outputs.eps]}
    if isinstance(block, Dense):
        return entry | {"matrix": upper_triangle(block.matrix), "eps": block.symmetric.eps}
    assert isinstance(block, EigenKronecker | Diagonal)
    return entry | {**block.tensors, "eps": block.eps}


def _read(entry: Mapping[str, Any]) -> Block:
    names, shapes = tuple(entry["names"]), tuple(tuple(shape) for shape in entry["shapes"])
    quantity: str = entry["quantity"]
    readers: dict[str, Callable[[], Block]] = {
        "Kronecker": lambda: _kronecker(entry, _matrix(entry, names, shapes), quantity),
        "EigenKronecker": lambda: _eigen(entry, _matrix(entry, names, shapes), quantity),
        "Dense": lambda: _dense(entry, Flat(names, shapes), quantity),
        "Diagonal": lambda: Diagonal(place := Flat(names, shapes), quantity,
                                     _checked(entry["values"], (sum(place.numels),)), float(entry["eps"])),
    }
    return readers[entry["kind"]]()


def _matrix(entry: Mapping[str, Any], names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]) -> Matrix:
    groups, outputs, inputs = (int(entry[key]) for key in ("groups", "outputs", "inputs"))
    place = Matrix(names, shapes, groups, outputs, inputs, entry["layout"])
    if place.layout not in LAYOUTS or sum(place.numels) != place.groups * place.outputs * place.inputs:
        raise InputError(f"{place.title} does not have {place.groups} x {place.outputs} x {place.inputs} entries")
    return place


def _kronecker(entry: Mapping[str, Any], place: Matrix, quantity: str) -> Kronecker:
    title = f"{place.title} ({quantity})"
    eps = dict(zip("AB", entry["eps"], strict=True))
    sizes = {"A": place.inputs, "B": place.outputs}
    inputs, outputs = (Symmetric(_square(entry[key], sizes[key], place), f"{key} of {title}", float(eps[key]))
                       for key in "AB")
    return Kronecker(place, quantity, inputs, outputs)


def _square(entries: Tensor, size: int, place: Place) -> Tensor:
    matrix = from_upper_triangle(entries)
    groups = place.groups if isinstance(place, Matrix) else 1
    return _checked(matrix, (groups, size, size) if matrix.dim() == 3 else (size, size))


def _dense(entry: Mapping[str, Any], place: Flat, quantity: str) -> Dense:
    matrix = _square(entry["matrix"], sum(place.numels), place)
    return Dense(place, quantity, Symmetric(matrix, f"{place.title} ({quantity})", float(entry["eps"])))


def _eigen(entry: Mapping[str, Any], place: Matrix, quantity: str) -> EigenKronecker:
    inputs, outputs = entry.get("A"), entry["B"]
    for vectors, size in ((inputs, place.inputs), (outputs, place.outputs)):
        if vectors is not None:
            _checked(vectors, (place.groups, size, size) if vectors.dim() == 3 else (size, size))
    values = _checked(entry["values"], (place.groups, place.outputs, place.inputs))
    return EigenKronecker(place, quantity, inputs, outputs, values, float(entry["eps"]))


def _checked(tensor: Any, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape:
        found = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise InputError(f"{found} where a tensor of shape {list(shape)} has to be")
    if not torch.isfinite(tensor).all():
        raise InputError(f"a tensor of shape {list(shape)} is not finite")
    return tensor
