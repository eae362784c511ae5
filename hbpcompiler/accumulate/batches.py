"""What a loader gives, as the arguments of a call; and a loader from its k-th batch on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from hbpcompiler.errors import InputTypeError

TARGETS = ("labels", "label", "targets", "target", "y")
"""Under which of these names a dict holds the target."""


def arguments_of(item: Any, prepare: Callable[[Any], Any] | None, device: torch.device) -> tuple[Any, ...]:
    """(X, y) or (X1, X2, y) as they are; a dict, or an object that acts like one, as (the rest of it, its target).

    Tensors go to `device`. Raises InputTypeError for anything else, if there is no `prepare` that makes a tuple of it.
    """
    if prepare is not None:
        item = prepare(item)
    if isinstance(item, Mapping) or (hasattr(item, "keys") and hasattr(item, "__getitem__")):
        held = {key: item[key] for key in item.keys()}  # noqa: SIM118 - not every such object can be iterated
        found = [name for name in TARGETS if name in held]
        if len(found) != 1:
            raise InputTypeError(f"a batch is a dict of {', '.join(map(str, held))}: which of these is the target? "
                                 "Pass prepare=lambda batch: ({'x': batch['x']}, batch['y'])")
        target = held.pop(found[0])
        item = (held, target)
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise InputTypeError(f"a batch of the loader's is a {type(item).__name__}, not (X, y); pass prepare=, a "
                             "function that makes (X, y) of it")
    return tuple(_moved(part, device) for part in item)


def _moved(item: Any, device: torch.device) -> Any:
    if isinstance(item, Tensor):
        return item.to(device, non_blocking=True)
    if isinstance(item, Mapping):
        return {key: _moved(part, device) for key, part in item.items()}
    if isinstance(item, tuple | list) and not hasattr(item, "_fields"):
        return type(item)(_moved(part, device) for part in item)
    return item


def batches_from(loader: Iterable[Any], first: int) -> Iterator[Any]:
    """The loader's batches from number `first` on; a DataLoader over a data set with indices reads none before."""
    if first and isinstance(loader, DataLoader) and loader.batch_sampler is not None and \
            not isinstance(loader.dataset, IterableDataset):
        rest = DataLoader(
            loader.dataset, batch_sampler=list(itertools.islice(iter(loader.batch_sampler), first, None)),
            num_workers=loader.num_workers, collate_fn=loader.collate_fn, pin_memory=loader.pin_memory,
            timeout=loader.timeout, worker_init_fn=loader.worker_init_fn)
        return iter(rest)
    return itertools.islice(iter(loader), first, None)


def length_of(loader: Any) -> int | None:
    """How many batches it has, if it says so."""
    try:
        return len(loader)
    except TypeError:
        return None
