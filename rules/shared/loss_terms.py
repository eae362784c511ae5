"""What all losses share: their reduction, a sample's share of a mean, noise, and what is wrong with a target.

l_n is N times sample n's share of the loss, so that L = (1/N) sum_n l_n for a mean and L = sum_n l_n for a sum.
"""

import math
from collections.abc import Sequence

import torch

from hbpcompiler.rule import Op, Shape, Tensor

REDUCTIONS = ("none", "mean", "sum")


def reduction(op: Op) -> str:
    return REDUCTIONS[op.reduction]


def share(op: Op, input: str = "self") -> float:
    """What multiplies each element's loss in l_n, where a mean is over all elements."""
    return 1 / math.prod(op.shape(input)) if reduction(op) == "mean" else 1.0


def of_samples(op: Op, elements: Tensor, input: str = "self") -> Tensor:
    """l_n [N] of the loss of each element, [N, *z], where a mean is over all elements."""
    return scaled(elements.flatten(1).sum(1) if op.shape(input) else elements, share(op, input))


def scaled(value: Tensor, factor: float) -> Tensor:
    return value if factor == 1 else value * factor


def repeated(value: Tensor, draws: int, shape: Shape) -> Tensor:
    """[N, *z] -> [N, M, *z], to draw M times per sample."""
    return value.unsqueeze(1).expand(-1, draws, *shape)


def drawable(parameter: Tensor) -> Tensor:
    """A distribution's parameter, 1 where an output is NaN or infinite: torch's draws stop there, on a GPU with an
    assertion that ends the process. What is made of the draw is not finite all the same, as the gradient is."""
    return torch.nan_to_num(parameter, 1.0, 1.0)


# -- checks, on real tensors -----------------------------------------------------------------------------------------


def at(target: Tensor, wrong: Tensor) -> str:
    """The first wrong value and where it is: "target[3] is 12"."""
    place = wrong.nonzero()[0].tolist()
    return f"target{place} is {target[tuple(place)].item()}"


def check_shape(op: Op, target: Tensor, allowed: Sequence[Shape], input: str = "self") -> str | None:
    """Targets of these shapes, without the sample axis; what the loss reads in another shape than it has may be any."""
    own = tuple(target.shape[1:])
    if own != tuple(op.shape("target")) or own in [tuple(shape) for shape in allowed]:
        return None
    takes = " or ".join(map(_of_batch, allowed))
    return f"has shape {list(target.shape)}; for an output of shape {_of_batch(op.shape(input))} the loss takes {takes}"


def _of_batch(shape: Shape) -> str:
    return "[" + ", ".join(["N", *map(str, shape)]) + "]"


def check_floating(op: Op, target: Tensor, input: str = "self") -> str | None:
    """Targets that are numbers of the output's dtype: as torch demands of some losses."""
    if target.is_floating_point():
        return check_numbers(op, target, input)
    wrong_shape = check_shape(op, target, [op.shape(input)], input)
    return wrong_shape or f"the target has dtype {target.dtype}, but must be floating, as the output is"


def check_numbers(op: Op, target: Tensor, input: str = "self") -> str | None:
    """Targets that are numbers: of the output's shape (torch would broadcast them otherwise, which is never meant) and
    dtype or whole ones, none of them nan."""
    if (reason := check_shape(op, target, [op.shape(input)], input)) is not None:
        return reason
    output = getattr(op, input, None)
    if target.is_floating_point() and isinstance(output, Tensor) and output.dtype != target.dtype:
        return f"the target has dtype {target.dtype}, but the output has {output.dtype}"
    wrong = target.isnan()
    return at(target, wrong) if wrong.any() else None


def bounds(target: Tensor) -> tuple[int, int]:
    """The smallest and the largest of some integers; -1 and -1 where there are none."""
    if not target.numel():
        return -1, -1
    low, high = target.aminmax()
    return int(low), int(high)


def check_labels(op: Op, target: Tensor, classes: int) -> str | None:
    """Class indices: int64 or uint8, in range, not all of them ignored."""
    if target.dtype not in (torch.int64, torch.uint8):
        return f"class indices must be torch.int64, but the target has dtype {target.dtype}"
    low, high = bounds(target)
    if low >= 0 and high < classes and not low <= op.ignore_index <= high:
        return None
    target = target.long()
    ignored = target == op.ignore_index
    wrong = ~ignored & ((target < 0) | (target >= classes))
    if wrong.any():
        return f"{at(target, wrong)}, but class indices lie between 0 and {classes - 1}, for {classes} classes"
    if reduction(op) == "mean" and ignored.all():
        return f"every target is the ignored index {op.ignore_index}, so that the mean loss is nan"
    return None


def reduced(each: Tensor, reduction: int) -> Tensor:
    """By torch's number for a reduction: none, mean, sum."""
    return each if reduction == 0 else each.mean() if reduction == 1 else each.sum()
