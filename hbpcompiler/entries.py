"""What the entries of a loader's batch are taken for, said where they may be something else: (X, y, indices), say."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from hbpcompiler.errors import BatchDoesNotFitError, InputError, TotalWarning
from hbpcompiler.system.callers import level_of_caller

BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
OF_SCORES = "pass prepare=lambda batch: (batch[0], batch[1])"
"""What to do, where a function takes no indices."""
OF_TOTALS = f"{OF_SCORES}, and indices=lambda batch: batch[2] for the samples' indices"
OF_DICTS = "pass prepare=, a function from the batch to a dict without them, or to (X, y)"
OF_OPERATORS = "hand over a loader of (X, y)"


def not_cut(loader: Any) -> str:
    """What to say of an error where the loader seems to be none."""
    if isinstance(loader, Dataset):
        return (". The loader is a data set by itself: if that gives single samples, pass DataLoader(dataset, "
                "batch_size=64)")
    if isinstance(loader, tuple) and any(isinstance(part, Tensor) for part in loader):
        return ". The loader is a tuple of tensors: if that is one batch, pass a list of it, [(X, y)]"
    return ""


def advice_for(error: InputError, item: Any, prepare: Callable[[Any], Any] | None, way: str = OF_TOTALS) -> str:
    """What to add to the error of a batch that does not fit, where it may hold more than a model's arguments and the
    target."""
    if prepare is not None or not isinstance(error, BatchDoesNotFitError):
        return ""
    if isinstance(item, Mapping):
        return (". A batch that is a dict is taken as the model's arguments by their names and the target: where it "
                f"has other entries too, {OF_OPERATORS if way is OF_OPERATORS else OF_DICTS}")
    if not _has_more(item):
        return ""
    return (f". Of the {len(item)} entries of a batch the last is taken as the target, the others as the model's "
            f"arguments: where some are neither, {way}")


def warn_of_optional(model: nn.Module, item: Any, prepare: Callable[[Any], Any] | None = None,
                     way: str = OF_TOTALS) -> None:
    """TotalWarning where entries of a batch are arguments that the forward does not need: of (X, y, indices) the labels
    may go through a forward(x, mask=None), and indices through the loss, as if nothing were wrong."""
    if prepare is not None or not _has_more(item) or not (optional := _optional(model, item)):
        return
    taken = ", ".join(f"batch[{place}] as its optional argument '{name}'" for place, name in optional)
    warnings.warn(
        f"of the {len(item)} entries of a batch {type(model).__name__}'s forward gets {taken}, and "
        f"batch[{len(item) - 1}] is the target. Where batches are something else, such as (X, y, indices), {way}; "
        "where it is meant, ((X1, X2), y) in the place of (X1, X2, y) says so",
        TotalWarning, stacklevel=level_of_caller())


def _has_more(item: Any) -> bool:
    """Than an input and the target."""
    return isinstance(item, tuple | list) and len(item) > 2


def _optional(model: nn.Module, item: Sequence[Any]) -> list[tuple[int, str]]:
    """Entries before the target that meet an argument with a default, and its name; but for the first, which is X."""
    try:
        arguments = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # a forward that Python cannot look into
        return []
    met = list(enumerate(arguments))[1 : len(item) - 1]
    return [(place, argument.name) for place, argument in met
            if argument.kind in BY_POSITION and argument.default is not inspect.Parameter.empty
            and item[place] is not None]
