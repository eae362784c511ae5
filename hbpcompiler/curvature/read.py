"""From a quantity by parameter to blocks: what each value is, how its parameter is laid out, what does not fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.curvature.block import Block
from hbpcompiler.curvature.elementary import Dense, Diagonal
from hbpcompiler.curvature.inverses import PIECE
from hbpcompiler.curvature.kronecker import EigenKronecker, Kronecker
from hbpcompiler.curvature.place import Flat, Matrix, Shape
from hbpcompiler.curvature.symmetric import ROUNDING, Symmetric, asymmetry, symmetrised
from hbpcompiler.errors import InputError, InputTypeError, listing
from hbpcompiler.quantities import (
    DIAGONAL,
    EIGEN,
    FACTOR,
    INPUT_FACTOR,
    QUANTITIES,
    REDUCED_FACTOR,
    REDUCED_INPUT_FACTOR,
)
from hbpcompiler.values import INPUTS_FIRST, LAYOUTS, OUTPUTS_FIRST, Stored

OF_BLOCKS = frozenset({DIAGONAL, FACTOR, INPUT_FACTOR, REDUCED_FACTOR, REDUCED_INPUT_FACTOR, EIGEN})
"""The closings that blocks of curvature consist of."""
FACTORS, EIGENVECTORS = ("A", "B"), ("A", "B", "eigenvalues")
ASYMMETRY = 1e3
"""Times eps, relative to the largest entry: a matrix that differs more from its transpose is no symmetric one."""


class DoesNotFitError(Exception):
    """What is wrong with one value."""


def blocks_of(values: Any, parameters: Any, layouts: Any, joint_biases: Any,
              ) -> tuple[list[Block], list[str], dict[str, torch.dtype | None]]:
    """The blocks, the names of all parameters in order, and their dtypes. Raises InputError that lists all that is
    wrong."""
    if not isinstance(values, Mapping):
        raise InputTypeError(f"curvature takes one quantity of a result, such as result.kfac: a mapping from parameter "
                             f"name to value, not {type(values).__name__}")
    quantity = getattr(values, "quantity", "")
    _check_quantity(quantity)
    stored = _stored(values, parameters, layouts, joint_biases)
    blocks: list[Block] = []
    findings = [f"{name!r}: no such parameter; there are {', '.join(map(repr, stored))}"
                for name in values if name not in stored]
    for name in values:
        if name in stored:
            try:
                blocks.append(_block(name, values[name], stored, quantity or "a curvature"))
            except DoesNotFitError as error:
                findings.append(f"{name!r}: {error}")
    named = [name for block in blocks for name in block.names]
    findings += [f"{name!r} has a value of its own, and is the bias in the block of a weight"
                 for name in set(named) if named.count(name) > 1]
    findings += _devices(blocks)
    if not values:
        findings.append("there are no parameters in it")
    if findings:
        raise InputError(listing(f"this is no curvature{f' ({quantity})' if quantity else ''}:", findings))
    return blocks, [name for name in stored if name in set(named)], {name: own.dtype for name, own in stored.items()}


def _check_quantity(quantity: str) -> None:
    entry = QUANTITIES.get(quantity)
    if entry is None:
        return
    kinds = {closing.kind for closing in entry.needs}
    if not kinds <= OF_BLOCKS or entry.fields not in ((), FACTORS, EIGENVECTORS):
        fitting = [name for name, other in QUANTITIES.items() if {closing.kind for closing in other.needs} <= OF_BLOCKS
                   and other.fields in ((), FACTORS, EIGENVECTORS) and not name.startswith("trace")]
        raise InputError(f"{quantity} is no block of a curvature matrix; take one of {', '.join(fitting)}")


# -- what is known of the parameters ---------------------------------------------------------------------------------


def _stored(values: Any, parameters: Any, layouts: Any, joint_biases: Any) -> dict[str, Stored]:
    """Shapes, dtypes, layouts and biases: from the result that the values are of, or as given."""
    own: Mapping[str, Stored] = getattr(values, "stored", None) or {}
    found = dict(own) if parameters is None else _given(parameters, own)
    if not found:
        raise InputError("the parameters' shapes are not known, as these values come from no result: add "
                         "parameters=model, or a dict {name: tensor or shape}")
    findings = []
    for name, layout in _mapping(layouts, "layouts").items():
        if name not in found or layout not in LAYOUTS:
            findings.append(f"layouts: {name!r}: {layout!r}")
        else:
            found[name] = found[name]._replace(layout=layout)
    for weight, bias in _mapping(joint_biases, "joint_biases").items():
        if weight not in found or bias not in found:
            findings.append(f"joint_biases: {weight!r}: {bias!r}")
        else:
            found[weight] = found[weight]._replace(bias=bias)
    if findings:
        raise InputError(listing("these do not fit:", findings, f"Layouts are {' or '.join(map(repr, LAYOUTS))}, of "
                                 f"parameters that are there: {', '.join(map(repr, found))}."))
    return found


def _given(parameters: Any, own: Mapping[str, Stored]) -> dict[str, Stored]:
    named = dict(parameters.named_parameters()) if isinstance(parameters, nn.Module) else parameters
    if not isinstance(named, Mapping):
        raise InputTypeError("parameters must be a model, or a dict {name: tensor or shape}, not "
                             f"{type(parameters).__name__}")
    found = {}
    for name, given in named.items():
        try:
            shape = tuple(int(length) for length in (given.shape if isinstance(given, Tensor) else given))
        except (TypeError, ValueError) as error:
            raise InputTypeError(f"parameters: {name!r} must be a tensor or a shape, not {given!r}") from error
        known = own.get(name, Stored(shape, None, ""))
        dtype = given.dtype if isinstance(given, Tensor) else known.dtype
        found[name] = known._replace(shape=shape, dtype=dtype)
    return found


def _mapping(given: Any, label: str) -> Mapping[str, str]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InputTypeError(f"{label} must be a dict by parameter name, not {type(given).__name__}")
    return given


# -- one value -------------------------------------------------------------------------------------------------------


def _block(name: str, value: Any, stored: Mapping[str, Stored], quantity: str) -> Block:
    own = stored[name]
    if isinstance(value, Tensor):
        return _plain(name, value, own, quantity)
    fields = tuple(getattr(value, "_fields", ()))
    if fields not in (FACTORS, EIGENVECTORS):
        raise DoesNotFitError(f"{type(value).__name__} is neither a tensor nor a named tuple of A and B, or of A, B "
                              "and eigenvalues")
    for field in fields:
        part = getattr(value, field)
        if part is not None or field != "A":
            _check(field, part)
    if value.A is None and fields == FACTORS:
        return _plain(name, value.B, own, quantity, "B")
    place = _matrix(name, value, stored)
    eps = _eps(value.B.dtype, own.dtype, own.curvature_dtype)
    if fields == EIGENVECTORS:
        for field, factor in (("A", value.A), ("B", value.B)):
            if factor is not None:
                _check_orthogonal(field, factor)
        return EigenKronecker(place, quantity, value.A, value.B, value.eigenvalues, eps)
    title = f"{place.title} ({quantity})"
    inputs, outputs = (Symmetric(_symmetric(field, matrix, eps), f"{field} of {title}", eps)
                       for field, matrix in (("A", value.A), ("B", value.B)))
    return Kronecker(place, quantity, inputs, outputs)


def _plain(name: str, value: Tensor, own: Stored, quantity: str, label: str = "the value") -> Block:
    """A diagonal, or a whole block as [n, n] or [*theta, *theta]."""
    _check(label, value)
    place, count = Flat((name,), (own.shape,)), math.prod(own.shape)
    eps = _eps(value.dtype, own.dtype)
    if tuple(value.shape) == own.shape and label != "B":
        return Diagonal(place, quantity, value.flatten(), eps)
    if tuple(value.shape) in ((count, count), own.shape * 2):
        eps = _eps(value.dtype, own.dtype, own.curvature_dtype)
        matrix = _symmetric(label, value.reshape(count, count), eps)
        return Dense(place, quantity, Symmetric(matrix, f"{place.title} ({quantity})", eps))
    wanted = f"{[count, count]}" if label == "B" else f"{list(own.shape)} (a diagonal) or {[count, count]} (a block)"
    raise DoesNotFitError(f"{label} has shape {list(value.shape)}; for a parameter {list(own.shape)} it has to be "
                          f"{wanted}")


def _matrix(name: str, value: Any, stored: Mapping[str, Stored]) -> Matrix:
    """Where the factors' features lie in the parameter, and that their sizes fit."""
    own = stored[name]
    names = (name, own.bias) if own.bias else (name,)
    shapes = tuple(stored[each].shape for each in names)
    A, B, count = value.A, value.B, sum(math.prod(shape) for shape in shapes)  # the factors' names
    sizes = [list(factor.shape) for factor in (A, B) if factor is not None]
    square = all(len(size) in (2, 3) and size[-1] == size[-2] for size in sizes)
    if not square or (len(sizes) == 2 and sizes[0][:-2] != sizes[1][:-2]):
        raise DoesNotFitError(f"factors of shapes {sizes} are not square matrices, or not one for each group")
    groups, outputs = (B.shape[0] if B.dim() == 3 else 1), B.shape[-1]
    inputs = 1 if A is None else A.shape[-1]
    eigenvalues = getattr(value, "eigenvalues", None)
    if groups * outputs * inputs != count or (eigenvalues is not None and eigenvalues.numel() != count):
        what = "" if eigenvalues is None else f" and eigenvalues {list(eigenvalues.shape)}"
        joint = f" with its bias {list(shapes[1])}" if own.bias else ""
        raise DoesNotFitError(f"factors of shapes {sizes}{what} do not fit a parameter {list(own.shape)}{joint}")
    layout = own.layout or _layout(own.shape, groups, outputs, inputs - len(names) + 1)
    return Matrix(names, shapes, groups, outputs, inputs, layout)


def _layout(shape: Shape, groups: int, outputs: int, inputs: int) -> str:
    """By the length of the first axis, where that says it."""
    first = shape[0] if shape else 1
    fitting = [layout for layout, length in ((OUTPUTS_FIRST, outputs), (INPUTS_FIRST, inputs))
               if first == groups * length]
    if len(fitting) == 2 and 1 not in (outputs, inputs):
        raise DoesNotFitError(f"a parameter {list(shape)} with {outputs} outputs and {inputs} inputs may be laid out "
                              f"either way: say layouts={{name: {OUTPUTS_FIRST!r}}} (as nn.Linear has its weight) or "
                              f"{INPUTS_FIRST!r} (as x @ W has it), or hand over the result's own mapping, which knows")
    if not fitting and 1 not in (outputs, inputs):
        raise DoesNotFitError(f"the first axis of a parameter {list(shape)} is neither its {outputs} outputs nor its "
                              f"{inputs} inputs: say layouts={{name: {OUTPUTS_FIRST!r}}} or {INPUTS_FIRST!r}")
    return fitting[0] if fitting else OUTPUTS_FIRST


def _check(label: str, part: Any) -> None:
    if not isinstance(part, Tensor):
        raise DoesNotFitError(f"{label} is no tensor but {type(part).__name__}")
    if not part.dtype.is_floating_point:
        raise DoesNotFitError(f"{label} is of {part.dtype}, and must be of a floating-point dtype")
    if part.numel() and not torch.stack(part.detach().aminmax()).isfinite().all():  # which NaN is handed on to
        raise DoesNotFitError(f"{label} has entries that are NaN or infinite")


def _symmetric(label: str, matrix: Tensor, eps: float) -> Tensor:
    matrix = matrix.detach()
    if asymmetry(matrix) > ASYMMETRY * eps * _largest(matrix):
        raise DoesNotFitError(f"{label} is not symmetric")
    return symmetrised(matrix)


def _largest(matrix: Tensor) -> float:
    """Of the entries' sizes; no less than the least normal number, below which rounding is not relative (a softmax that
    is sure of a label leaves such factors)."""
    if not matrix.numel():
        return 0.0
    least, most = (float(end) for end in matrix.aminmax())
    return max(-least, most, torch.finfo(matrix.dtype).smallest_normal)


def _check_orthogonal(label: str, vectors: Tensor) -> None:
    """On a few random vectors, which V^T V must leave as they are: its columns' inner products all enter."""
    size = vectors.shape[-1]
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(size, 3, dtype=torch.float64, generator=generator, device="cpu").to(vectors.device)
    error = -probes.expand(*vectors.shape[:-2], *probes.shape)
    for some in vectors.split(max(1, PIECE // max(1, size)), -2):  # all of it in float64 is twice a program at times
        rows = some.double()
        error = error + rows.mT @ (rows @ probes)
    most = ROUNDING * max(size, 10) * torch.finfo(vectors.dtype).eps * max(vectors.shape[0], 1) ** 0.5
    if error.norm() > most * probes.norm():
        raise DoesNotFitError(f"the columns of {label} are not orthonormal, as eigenvectors are")


def _eps(*dtypes: torch.dtype | None) -> float:
    """The rounding of what was computed in the narrowest of them, wherever it was added up."""
    return max(torch.finfo(each).eps for each in dtypes if each is not None and each.is_floating_point)


def _devices(blocks: list[Block]) -> list[str]:
    devices = sorted({str(tensor.device) for block in blocks for tensor in block.tensors.values()})
    return [f"its tensors are on {' and '.join(devices)}: bring all to one device"] if len(devices) > 1 else []
