"""Two operands of an elementwise operation that torch broadcasts, as columns [N, K, *out] meet them.

An operand has samples or not (a constant, a parameter), and may be a number.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hbpcompiler.rule import Contraction, Op, Shape, Tensor


def other_than(name: str) -> str:
    return "other" if name == "self" else "self"


def varying(op: Op, names: Sequence[str] = ("self", "other")) -> list[str]:
    return [name for name in names if op.varies(name)]


def scaled(value: Any, number: Any) -> Any:
    """A product with a number, or an expression in the batch's size; short where that is 1 or -1."""
    if not isinstance(number, int | float):
        return value * number
    return value if number == 1 else -value if number == -1 else value * number


def lifted(op: Op, name: str) -> Any:
    """The operand, or the result, as it meets columns: with a column axis after its sample axis if it has one."""
    value = getattr(op, name)
    return value.unsqueeze(1) if name == "output" or op.has_samples(name) else value


def own_shape(op: Op, name: str) -> Shape:
    """The operand's shape, without the axis of length one that a constant may have in place of samples."""
    shape = op.shape(name)
    return shape[1:] if len(shape) > len(op.shape("output")) else shape


def is_whole(op: Op, name: str) -> bool:
    """Whether the operand has the result's shape, samples included."""
    return op.has_samples(name) and op.shape(name) == op.shape("output")


def repeated(op: Op, name: str) -> tuple[list[int], list[int]]:
    """Axes of the result that the operand lacks, and those along which its one entry is repeated."""
    shape, output = own_shape(op, name), op.shape("output")
    missing = len(output) - len(shape)
    ones = [axis for axis in range(missing, len(output)) if shape[axis - missing] != output[axis]]
    return list(range(missing)), ones


def unbroadcast(op: Op, name: str, columns: Tensor) -> Tensor:
    """[N, K, *out] -> [N, K, *operand]: the sum over what was repeated."""
    missing, ones = repeated(op, name)
    if ones:
        columns = columns.sum([axis + 2 for axis in ones], True)
    if missing:
        columns = columns.sum([axis + 2 for axis in missing])
    return columns if own_shape(op, name) == op.shape(name) else columns.unsqueeze(2)


def misaligned(op: Op, names: Sequence[str] = ("self", "other")) -> str | None:
    """Why the operands' sample axes do not meet, if they do not."""
    for name in names:
        if op.has_samples(name) and len(op.shape(name)) < len(op.shape("output")):
            return (
                f"'{name}' has fewer axes than the result, so that its sample axis meets another axis; give it axes of "
                "length one, as in x.unsqueeze(1)"
            )
    return None


def columns_per_element(op: Op, value: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt|value| as one column per element of the result, [N, h, *out], and the signs of value, [N, h]."""
    output = op.shape("output")
    flat = value.reshape(-1, math.prod(output))
    columns = torch.diag_embed(flat.abs().sqrt())
    signs = torch.ones_like(flat).copysign(flat)
    return columns if len(output) == 1 else columns.reshape(-1, math.prod(output), *output), signs


# -- a parameter as an operand ---------------------------------------------------------------------------------------


def added(op: Op, name: str, times: Callable[[Op], Any] = lambda op: 1) -> Contraction:
    """The cotangent of a parameter that is added so many times: sums of columns."""
    number = times(op)
    if not isinstance(number, int | float):  # an expression in the batch's size, which the program has its own of
        return multiplied(op, name, lambda op: torch.ones_like(op.output) * times(op), True)
    if number != 1:
        return multiplied(op, name, lambda op: torch.full_like(op.output, number), True)

    def columns_view(op: Op, columns: Tensor) -> Tensor:
        total = unbroadcast(op, name, columns)
        return total.flatten(2) if op.shape(name) else total.unsqueeze(2)

    return Contraction("nko->nko", columns_view)


def multiplied(op: Op, name: str, factor: Callable[[Op], Tensor], whole: bool) -> Contraction:
    """The cotangent of a parameter that meets `factor`, [N, *out] if whole; positions are where it is repeated."""
    missing, ones = repeated(op, name)
    positions = missing + ones
    kept = [axis for axis in range(len(op.shape("output"))) if axis not in positions]

    def arranged(tensor: Tensor, lead: int) -> Tensor:
        """Sample axes, then positions as one axis, then the parameter's entries as one axis."""
        order = [*range(lead), *[axis + lead for axis in positions + kept]]
        tensor = tensor if order == sorted(order) else tensor.permute(order)
        if len(kept) != 1:
            tensor = tensor.flatten(lead + len(positions)) if kept else tensor.unsqueeze(-1)
        return tensor.flatten(lead, -2) if len(positions) > 1 else tensor

    def operand(op: Op) -> Tensor:
        value = factor(op)
        return arranged(value if whole else value.expand(-1, *op.shape("output")), 1)

    equation = "nkpd,npd->nkd" if positions else "nkd,nd->nkd"
    return Contraction(equation, lambda op, columns: arranged(columns, 2), operand)
