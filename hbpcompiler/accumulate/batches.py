"""What a loader gives, as the arguments of a call; and a loader from its k-th batch on."""

from __future__ import annotations

import collections
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.checks import check_batch
from hbpcompiler.errors import InputError, InputTypeError

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)
SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
TARGETS = ("labels", "label", "targets", "target", "y")
"""Under which of these names a dict holds the target."""


def arguments_of(item: Any, prepare: Callable[[Any], Any] | None, device: torch.device) -> tuple[Any, ...]:
    """(X, y) or (X1, X2, y) as they are; a dict, or an object that acts like one, as (the rest of it, its target).

    Tensors go to `device`. Raises InputTypeError for anything else, if there is no `prepare` that makes a tuple of it.
    """
    if prepare is not None:
        item = prepare(item)
    if isinstance(item, tuple | list) and len(item) > 1:
        return tuple([_moved(part, device) for part in item])
    if isinstance(item, Mapping) or (hasattr(item, "keys") and hasattr(item, "__getitem__")):
        held = {key: item[key] for key in item.keys()}  # noqa: SIM118 - not every such object can be iterated
        found = [name for name in TARGETS if name in held]
        if len(found) != 1:
            raise InputTypeError(f"a batch is a dict of {', '.join(map(str, held))}: which of these is the target? "
                                 f"Pass {_prepared(list(held), found)}, say")
        target = held.pop(found[0])
        item = (held, target)
    if not isinstance(item, tuple | list) or len(item) < 2:
        kind = type(item).__name__
        if isinstance(item, tuple | list):
            kind += f" of {len(item)} {'entry' if len(item) == 1 else 'entries'}"
        raise InputTypeError(f"a batch of the loader's is a {kind}, not (X, y); pass prepare=, a function that makes "
                             "(X, y) of it")
    return tuple([_moved(part, device) for part in item])


def _prepared(names: Sequence[Any], targets: Sequence[str]) -> str:
    """What `prepare` may be for a dict of these names, none or several of which are called as targets are."""
    target = next(iter(targets), names[-1] if len(names) > 1 else None)
    inputs = ", ".join(f"{name!r}: batch[{name!r}]" for name in names if name not in (target, *targets))
    return f"prepare=lambda batch: ({{{inputs}}}, {None if target is None else f'batch[{target!r}]'})"


def _moved(item: Any, device: torch.device) -> Any:
    if isinstance(item, Tensor):
        return item if item.device == device else item.to(device, non_blocking=True)
    if isinstance(item, Mapping):
        return {key: _moved(part, device) for key, part in item.items()}
    if isinstance(item, tuple | list) and not hasattr(item, "_fields"):
        return type(item)(_moved(part, device) for part in item)
    return item


class One(NamedTuple):
    """One batch, read."""

    batch: Batch
    """Of the call, checked."""
    terms: float | None
    """What `count` says of it."""
    sample_weights: Tensor | None
    indices: Callable[[], Sequence[int] | Tensor | None]
    """Gives those of its samples, which only draws need, where there are some."""
    own_data: bool

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that its quantities depend on."""
        weights = () if self.sample_weights is None else (self.sample_weights,)
        terms = () if self.terms is None else (torch.tensor(self.terms, dtype=torch.float64, device="cpu"),)
        return (*self.batch.tensors, *weights, *terms)


@dataclass(frozen=True)
class Said:
    """What the caller says of batches, as functions of one as the loader gives it."""

    prepare: Callable[[Any], Any] | None
    count: Callable[[Any], Any] | None
    sample_weights: Callable[[Any], Any] | None
    indices: Callable[[Any], Any] | None

    def __post_init__(self) -> None:
        for name, given in vars(self).items():
            if given is not None and not callable(given):
                raise InputTypeError(f"{name} must be a function of a batch, as the loader gives it, not a "
                                     f"{type(given).__name__}")

    def of(self, item: Item, model: nn.Module, device: torch.device) -> One:
        """Raises InputError for what is no batch of this model's, and indices that are not one for each sample."""
        batch = check_batch(model, arguments_of(item.batch, self.prepare, device))
        samples = batch.samples
        count = None if self.count is None else number_of_terms(self.count(item.batch))
        weights = None if self.sample_weights is None else _moved(self.sample_weights(item.batch), device)
        weighs = self.sample_weights is not None
        if weighs and (not isinstance(weights, Tensor) or weights.shape != (samples,)):
            raise InputError(f"sample_weights gave {_shown(weights)} for a batch of {samples} samples; it must be a "
                             f"tensor of shape [{samples}], a weight for each")
        if self.indices is None:
            return One(batch, count, weights, item.indices, item.own_data)
        given = self.indices(item.batch)
        indices = _integers(given)
        if indices is None or indices.shape != (samples,):
            raise InputError(f"indices gave {_shown(given if indices is None else indices)} for a batch of {samples} "
                             "samples; it must be an integer for each, its index in the data set")
        return One(batch, count, weights, lambda: indices, own_data=False)


def number_of_terms(given: Any) -> float:
    """What `count` gave for a batch. Raises InputError for what is no number."""
    try:
        return float(given)
    except (TypeError, ValueError) as error:
        raise InputError(f"count gave {_shown(given)} for a batch; it must be a number of terms") from error


def _integers(given: Any) -> Tensor | None:
    """What `indices` gave, as a tensor; None where it is none of integers."""
    try:
        tensor = torch.as_tensor(given, device="cpu")
    except (TypeError, ValueError, RuntimeError):  # None, a text, lists of several lengths
        return None
    return tensor if tensor.dtype in INTEGERS else None


def is_loader(given: Any) -> bool:
    """Whether batches can be read of it."""
    return isinstance(given, Iterable) or hasattr(given, "__getitem__")


def _shown(value: Any) -> str:
    return f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _none() -> None:
    """A loader without indices."""


class Item(NamedTuple):
    """A batch as the loader gives it."""

    batch: Any
    indices: Callable[[], Sequence[int] | None] = _none
    """Gives those of its samples in the data set, where the loader has some."""
    own_data: bool = True
    """Whether these count the samples of a data set that no other rank has parts of, as far as one can see."""


def batches_from(loader: Iterable[Any], first: int) -> Iterator[Item]:
    """The loader's batches from number `first` on; a DataLoader over a data set with indices reads none before."""
    if isinstance(loader, DataLoader) and _has_indices(loader):
        return _with_indices(loader, first)
    return map(Item, itertools.islice(iter(loader), first, None))


def _has_indices(loader: DataLoader[Any]) -> bool:
    own_way = type(loader).__iter__ is not DataLoader.__iter__
    return not own_way and loader.batch_sampler is not None and loader.in_order and \
        not isinstance(loader.dataset, IterableDataset)


def _with_indices(loader: DataLoader[Any], first: int) -> Iterator[Item]:
    """By a loader like this one that reads from batch `first` on and notes what its sampler gives.

    Its generator draws the same: first a seed for workers, then what the sampler asks for.
    """
    assert loader.batch_sampler is not None
    noted = _Noted(loader.batch_sampler, first)
    rows = _rows_of(loader)
    again = DataLoader(
        loader.dataset if rows is None else rows, batch_sampler=noted, num_workers=loader.num_workers,
        collate_fn=loader.collate_fn if rows is None else _as_it_is, pin_memory=loader.pin_memory,
        timeout=loader.timeout, worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context, generator=loader.generator,
        prefetch_factor=loader.prefetch_factor)
    sampler = getattr(loader.batch_sampler, "sampler", None)
    own_data = not isinstance(loader.dataset, Subset) and isinstance(sampler, SequentialSampler | RandomSampler)
    for batch in again:
        yield Item(batch, partial(_in_data_set, loader.dataset, noted.indices.popleft()), own_data)


class _Rows:
    """Tensors that give the rows of a batch at once, copied as `default_collate` copies them one by one."""

    def __init__(self, dataset: Dataset[Any], tensors: Sequence[Tensor]) -> None:
        self._dataset, self._tensors = dataset, tensors

    def __getitems__(self, indices: list[Any]) -> Any:
        found = _in_data_set(self._dataset, indices)
        if found is None:  # lists of rows, say
            return default_collate([self._dataset[index] for index in indices])
        rows = torch.as_tensor(found, device="cpu")
        return [tensor[rows] for tensor in self._tensors]


def _rows_of(loader: DataLoader[Any]) -> Any:
    """The rows of a TensorDataset, or of a part of one, where nothing of the user's comes between them and a batch;
    None for other loaders. A small network's step takes less than 64 rows do one by one."""
    whole = loader.dataset
    while type(whole) is Subset:
        whole = whole.dataset
    plain = loader.collate_fn is default_collate and not loader.num_workers and not loader.pin_memory
    if not plain or type(whole) is not TensorDataset:
        return None
    dense = all(type(tensor) is Tensor and tensor.layout is torch.strided for tensor in whole.tensors)
    return _Rows(loader.dataset, whole.tensors) if dense else None


def _as_it_is(batch: Any) -> Any:
    return batch


class _Noted:
    """A batch sampler from its batch `first` on, with what it has given and nobody has taken."""

    def __init__(self, sampler: Iterable[Any], first: int) -> None:
        self._sampler, self._first = sampler, first
        self.indices: collections.deque[list[Any]] = collections.deque()

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in itertools.islice(iter(self._sampler), self._first, None):
            self.indices.append(list(batch))
            yield self.indices[-1]


def _in_data_set(dataset: Any, indices: list[Any]) -> list[int] | None:
    """The indices in the data set that this one is a part of, or of a part of; None where they are no whole numbers."""
    while isinstance(dataset, Subset):
        indices, dataset = [dataset.indices[index] for index in indices], dataset.dataset
    try:
        return [operator.index(index) for index in indices]
    except TypeError:
        return None


def shuffles_anew(loader: Any) -> bool:
    """Whether it draws its order from torch's global generator, which stands elsewhere in the next run."""
    sampler = getattr(loader, "sampler", None)
    return isinstance(sampler, SHUFFLING) and sampler.generator is None


def length_of(loader: Any) -> int | None:
    """How many batches it has, if it says so."""
    try:
        return len(loader)
    except TypeError:
        return None
