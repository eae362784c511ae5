"""Opacus's optimizers, accountants and loaders with gradients from a program: no hooks, any model that compiles.

Two of Opacus's optimizers take their gradients from attributes of the parameters, and these fill them:

- `DPOptimizer` (and those per layer, adaptive, distributed) from `p.grad_sample`: `fill_grad_sample(compiled(X, y))`;
- `DPOptimizerFastGradientClipping` (mode "ghost") from `p.grad`, the clipped sum: `clip(compiled, X, y, max_norm=1.0)`.

Nothing of Opacus is imported: noise, accounting and sampling stay its own (Yousefpour et al. 2021).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hbpcompiler.clipping import PER_PARAMETER
from hbpcompiler.compiled import Compiled
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.compiler.trace.checks import check_batch
from hbpcompiler.errors import InputError, InputTypeError, listing
from hbpcompiler.result import Result

PER_SAMPLE, CLIPPED = "batch_grad", "clipped_grad"


class Clipped(NamedTuple):
    """What `clip` tells of a batch."""

    loss: Tensor
    """L; NaN for an empty batch."""
    norms: Any
    """|grad l_n|, [N]; with clipping="per_parameter" a dict of such tensors by parameter name."""


def fill_grad_sample(result: Result) -> None:
    """Set `p.grad_sample`, [N, *theta], to the gradients of the samples' losses l_n, as Opacus's hooks do.

    `result` is of a program with the quantity "batch_grad", of all trainable parameters. l_n is on the scale that
    Opacus has with loss_reduction equal to the loss's: N times the sample's share of a mean, and the share of a sum,
    which is not copied. Where gradients of an earlier batch still wait for the optimizer's step, these come behind
    them in a list, as after a second backward pass. Parameters that the loss does not depend on have zeros, so that
    they get noise, too; frozen ones stay as they are.

    A loss that is a sum also takes the empty batches of Poisson sampling.

    Raises InputError without that quantity, for trainable parameters that it was not asked of, and for a loss that is
    neither a mean nor a sum.
    """
    if not isinstance(result, Result):
        raise InputTypeError(f"fill_grad_sample takes what a compiled model returned, not {type(result).__name__}")
    if PER_SAMPLE not in result:
        raise InputError(f"this result has {', '.join(result)}: compile the model with quantities=['{PER_SAMPLE}']")
    if not result.reduction:
        raise InputError("the loss is neither a mean over the samples nor a sum, so that l_n has no scale")
    model: nn.Module = result._model
    _check(model, result.batch_grad, result.stored, PER_SAMPLE)
    samples = len(next(iter(result.batch_grad.values())))
    scale = samples if result.reduction == "mean" else 1
    for name, parameter in _trainable(model):
        found = result.batch_grad.get(name)
        if found is None:
            found = parameter.detach().new_zeros(samples, *parameter.shape)
        found = found * scale if scale != 1 else found
        waiting = getattr(parameter, "grad_sample", None)
        if waiting is not None:
            found = [*(waiting if isinstance(waiting, list) else [waiting]), found]
        parameter.grad_sample = found  # type: ignore[attr-defined]  # Opacus's own attribute


def clip(compiled: Compiled, *batch: Any, max_norm: Any, **arguments: Any) -> Clipped:
    """Set `p.grad` to sum_n C_n grad l_n, the clipped sum that Opacus's ghost clipping leaves there, in one pass.

    `compiled` has the quantity "clipped_grad" of all trainable parameters; its option `clipping` says what C_n is:
    "opacus" gives the step of Opacus's optimizers to rounding, "flat" the same without the 1e-6 that those add to
    norms. `max_norm` is the optimizer's `max_grad_norm`; `arguments` are what else a call takes. Nothing is divided and
    there is no noise: both is done by `DPOptimizerFastGradientClipping`, or by yourself. `p.grad` is replaced, not
    added to; it is zero for an empty batch, whatever the loss, and for parameters that the loss does not depend on.

    Raises InputError as `fill_grad_sample` does, and whatever a call raises for arguments that do not fit.
    """
    if not isinstance(compiled, Compiled):
        raise InputTypeError(f"clip takes what hbp.compile returned, not {type(compiled).__name__}")
    if CLIPPED not in compiled.quantities:
        raise InputError(f"this program has {', '.join(compiled.quantities)}: compile the model with "
                         f"quantities=['{CLIPPED}']")
    asked = [name for name, _ in _trainable(compiled.model) if compiled.options.chosen.asks(CLIPPED, name)]
    _check(compiled.model, asked, dict(_trainable(compiled.model)), CLIPPED)
    if batch_of(batch).samples:
        result = compiled(*batch, max_norm=max_norm, **arguments)
        sums, told = result.clipped_grad, Clipped(result.loss, result.norms)
    else:
        kept, decay = arguments.pop("into", None), arguments.pop("decay", 1.0)
        compiled._beside({"max_norm": max_norm, **arguments}, check_batch(compiled.model, batch))
        sums, told = _decayed(kept, decay), _of_none(compiled, asked)
    for name, parameter in _trainable(compiled.model):
        found = sums.get(name)
        parameter.grad = torch.zeros_like(parameter) if found is None else found
    return told


def _decayed(kept: Any, decay: Any) -> Mapping[str, Tensor]:
    """The sums that a call would add nothing to."""
    sums: Mapping[str, Tensor] = {} if kept is None else kept[CLIPPED]
    with torch.no_grad():
        for tensor in sums.values():
            tensor.mul_(decay)
    return sums


def _of_none(compiled: Compiled, names: Iterable[str]) -> Clipped:
    """Of an empty batch, without a program."""
    like = next(parameter for _, parameter in _trainable(compiled.model)).detach()
    none: Any = like.new_zeros(0)
    each = compiled.options.clipping == PER_PARAMETER
    return Clipped(like.new_full((), torch.nan), dict.fromkeys(names, none) if each else none)


def _trainable(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _check(model: nn.Module, held: Iterable[str], known: Mapping[str, Any], quantity: str) -> None:
    """InputError for what would leave a gradient that is not private."""
    held = set(held)
    missing = [repr(name) for name, _ in _trainable(model) if name in known and name not in held]
    if missing:
        raise InputError(listing(f"{quantity} was not asked of these trainable parameters:", missing,
                                 "An optimizer would step along what else is in their gradients: freeze them, or ask "
                                 f"for {quantity} of all parameters."))
