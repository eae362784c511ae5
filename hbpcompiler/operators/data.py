"""The data that an operator is about: one batch, or a loader of batches that gives the same ones each time."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.checks import check_batch
from hbpcompiler.entries import OF_OPERATORS, warn_of_optional
from hbpcompiler.errors import InputError, InputTypeError

BATCH = "(X, y), (X1, X2, y) or ({\"name\": X, ...}, y)"


class Data:
    """Batches, checked and numbered; each pass over them sees the same ones."""

    def __init__(self, model: nn.Module, given: Any) -> None:
        """Reads a loader twice. Raises InputError if it is empty, or gives other batches the second time."""
        self._model = model
        self._given = _checked(given)
        self._told = isinstance(given, tuple)
        """Of entries that may be something else than they are taken for; one batch by itself is as it was written."""
        if isinstance(given, tuple):
            self.sizes = [batch.samples for batch in self._read()]
            return
        first = [(batch.samples, _fingerprint(batch)) for batch in self._read()]
        second = [(batch.samples, _fingerprint(batch)) for batch in self._read()]
        self.sizes = [samples for samples, _ in first]
        if not first:
            raise InputError("the loader gives no batch")
        if len(first) != len(second):
            raise InputError(f"the loader gave {len(first)} batches at first and {len(second)} when it was read again; "
                             "pass one that can be read again, such as a DataLoader or a list of batches")
        changed = [number for number, (one, other) in enumerate(zip(first, second, strict=True)) if one != other]
        if changed:
            raise InputError(f"the loader gave other data when it was read again (first in batch {changed[0]}), so "
                             "that there is no one matrix: switch off shuffling (shuffle=False) and random "
                             "augmentation")

    @property
    def samples(self) -> int:
        """N, of all batches together."""
        return sum(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Batch]:
        """Raises InputError where the loader's batches have other sizes than when the operator was made."""
        count = 0
        for number, batch in enumerate(self._read()):
            if number >= len(self.sizes) or batch.samples != self.sizes[number]:
                raise InputError(f"the loader's batch {number} is another one than when the operator was made")
            count += 1
            yield batch
        if count != len(self.sizes):
            raise InputError(f"the loader gave {count} batches, but {len(self.sizes)} when the operator was made")

    def first(self) -> Batch:
        return next(self._read())

    def counts(self, count: Callable[[Any], Any]) -> list[float]:
        """What the user's function says of each batch, as the loader gives it."""
        found = [float(count(item)) for item in self._given]
        if not all(0 <= number < float("inf") for number in found) or not sum(found):
            raise InputError(f"count must give how many terms of the mean each batch holds, but gave {found}")
        return found

    def _read(self) -> Iterator[Batch]:
        for number, item in enumerate(self._given):
            if not isinstance(item, tuple | list):
                raise InputTypeError(f"batch {number} of the loader is no batch {BATCH}, but {type(item).__name__}")
            if not self._told:
                self._told = True
                warn_of_optional(self._model, item, way=OF_OPERATORS)
            batch = check_batch(self._model, item)
            if not batch.samples:
                raise InputError(f"batch {number} has no samples")
            yield batch


def _checked(given: Any) -> Iterable[Any]:
    """The batches."""
    if isinstance(given, tuple):
        return [given]
    if isinstance(given, Tensor | Mapping | str) or not isinstance(given, Iterable):
        raise InputTypeError(f"data must be one batch {BATCH}, as a tuple, or a loader of such batches, not "
                             f"{type(given).__name__}")
    if isinstance(given, list) and any(isinstance(item, Tensor) for item in given):
        raise InputTypeError(f"data is a list with tensors in it; one batch is a tuple, {BATCH}")
    if isinstance(given, Iterator):
        raise InputError(f"data is {type(given).__name__}, which can be read only once, but every product reads it; "
                         "pass a DataLoader or a list of batches")
    return given


def _fingerprint(batch: Batch) -> str:
    """Of all that the batch holds."""
    found = hashlib.blake2b(batch.layout.identity.encode())
    for tensor in batch.tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        held = tensor.detach().cpu().contiguous()
        found.update(ctypes.string_at(held.data_ptr(), held.nbytes))
    return found.hexdigest()
