"""What belongs to a step and the one after it: the size of the update, and alpha."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hbpcompiler.monitor.parabola import End, alpha
from hbpcompiler.monitor.programs import GROUP, Programs, standing_at
from hbpcompiler.monitor.seen import Seen, norms, total
from hbpcompiler.result import Result

MOST_ROUNDING = 1e-4
"""Of |d|^2, what rounding of the parameters may be of a step along the gradient."""


@dataclass
class Begun:
    """What alpha needs of a step, apart from all else that was seen of it."""

    batch: Any
    """A copy."""
    state: dict[str, Tensor]
    """Copies of buffers."""
    generator: Callable[[], torch.Generator | None]
    """Of the step's own draws."""
    mean: bool
    """Whether the loss is a mean over samples, and not a sum."""
    gradient: Mapping[str, Tensor]
    """grad L by the program, of the parameters that reach the loss."""
    squared_gradient: float
    """|g|^2, g = grad L of the mean loss."""
    losses: Tensor
    """l_n, [N]."""
    slopes: Tensor
    """g_n . g, [N]."""


@dataclass
class Pending:
    """A step that waits for the parameters to move."""

    step: int
    parameters: dict[str, Tensor]
    """Copies, of the trainable ones."""
    alpha: Begun | None
    """None where there is no alpha."""


def begin(model: nn.Module, batch: Sequence[Any], seen: Seen, with_alpha: bool,
          generator: Callable[[], torch.Generator | None]) -> Pending:
    """Everything that the end of the step will need."""
    copies = {name: value.detach().clone() for name, value in seen.parameters.items()}
    if not with_alpha:
        return Pending(seen.step, copies, None)
    state = {name: value.detach().clone() for name, value in model.named_buffers()}
    kept = pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), tuple(batch))
    return Pending(seen.step, copies, Begun(kept, state, generator, seen.mean, seen.own_gradient, seen.squared_gradient,
                                            seen.losses, seen.slopes))


def moved(pending: Pending, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """d, by the names of the parameters that have been there at both ends."""
    return {name: parameters[name].detach() - before for name, before in pending.parameters.items()
            if name in parameters and parameters[name].shape == before.shape}


def stood_still(way: Mapping[str, Tensor]) -> bool:
    return not any(bool(part.any()) for part in way.values())


def direction(begun: Begun, way: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """d in the parameters that reach the loss."""
    return {name: way[name] for name in begun.gradient if name in way}


def alpha_of(pending: Pending, begun: Begun, way: Mapping[str, Tensor], end: Result, model: nn.Module,
             programs: Programs) -> float | None:
    """`end` has l_n and g_n . d at the end of the step."""
    slopes = start_slopes(pending, begun, way, model, programs)
    return alpha(End(begun.losses, slopes), End(end.batch_loss, _slopes(end, begun.mean)))


def start_slopes(pending: Pending, begun: Begun, way: Mapping[str, Tensor], model: nn.Module,
                 programs: Programs) -> Tensor:
    """g_n . d at the start, [N]: from the pass that has been, where the step goes along the gradient as that of plain
    SGD does; otherwise by a second pass on the same batch at the old parameters."""
    along = multiple_of_gradient(begun, pending.parameters, way)
    if along is not None:
        return along * begun.slopes
    with standing_at(model, {**pending.parameters, **begun.state}):
        result = programs.at_end(begun.batch, way, begun.generator())
    return _slopes(result, begun.mean)


def multiple_of_gradient(begun: Begun, before: Mapping[str, Tensor], way: Mapping[str, Tensor]) -> float | None:
    """c with d = c g to rounding, g the gradient of the mean of l_n; None for another direction.

    Where steps are so small that rounding of the parameters, `before` them, is a part of d, that part is at most a
    hundredth of it.
    """
    gradient = begun.gradient
    if set(way) != set(gradient) or not begun.squared_gradient > 0:
        return None
    share = 1.0 if begun.mean else 1 / len(begun.losses)
    multiple = share * total(_inner(way[name], part) for name, part in gradient.items()) / begun.squared_gradient
    rest = {name: way[name] - multiple * share * part for name, part in gradient.items()}
    beside = total(_inner(part, part) for part in rest.values())
    length = total(_inner(part, part) for part in way.values())
    rounding = max(torch.finfo(part.dtype).eps for part in way.values())
    if beside <= rounding * length:
        return multiple
    small = beside <= MOST_ROUNDING * length and all(
        _is_rounding(part, before[name], way[name]) for name, part in rest.items())
    return multiple if small else None


def _inner(one: Tensor, other: Tensor) -> Tensor:
    if one.dtype in (torch.float32, torch.float64) and one.dtype == other.dtype:
        return torch.dot(one.reshape(-1), other.reshape(-1)).double()
    return (one.double() * other.double()).sum()


def _is_rounding(rest: Tensor, before: Tensor, way: Tensor) -> bool:
    """Whether it is no more than what is lost when a number is added to a parameter and taken off again."""
    return bool((rest.abs() <= torch.finfo(way.dtype).eps * (before.abs() + 2 * way.abs())).all())


def _slopes(result: Result, mean: bool) -> Tensor:
    """g_n . d, [N]."""
    found: Tensor = result.project[GROUP][:, 0].double()
    return found * len(found) if mean else found


def update_size(way: Mapping[str, Tensor]) -> dict[str, float]:
    return norms(way)
