"""One pass over the training data, for rows of scores: from where files of an earlier run end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from hbpcompiler.accumulate.batches import batches_from, length_of
from hbpcompiler.accumulate.checkpoint import digest_of
from hbpcompiler.bridges.influence.parts import Folder, Part
from hbpcompiler.bridges.influence.samples import Counted, Item, Samples
from hbpcompiler.bridges.influence.shards import Rows
from hbpcompiler.errors import InputError


@dataclass(frozen=True)
class Pass:
    """Rows of scores."""

    key: str
    """How their files are called."""
    beside: Mapping[str, str]
    """What their files must be of, beside the run's."""


One = Callable[[Item], tuple[dict[str, Tensor], Counted]]
"""From a batch to its columns, [F, n] by name, and what it counts."""


def through(own: Pass, samples: Samples, loader: Iterable[Any], one: One, folder: Folder, every: float,
            progress: bool) -> Rows:
    """`one` batch after the other; written to the folder every so many seconds, at the end and on Ctrl-C."""
    parts = folder.saved(own.key, own.beside)
    if not (parts and parts[-1].complete):
        parts = _go(own, parts, samples, loader, one, folder, every, progress)
    counted, values = Counted(), dict[str, list[Tensor]]()
    for part in parts:
        counted += part.counted
        for name, several in part.values.items():
            values.setdefault(name, []).extend(several)
    return Rows({name: torch.cat(several, 1) for name, several in values.items()}, counted)


def _go(own: Pass, parts: list[Part], samples: Samples, loader: Iterable[Any],
        one: One, folder: Folder, every: float, progress: bool) -> list[Part]:
    done = parts[-1].end if parts else 0
    part, saved = Part(done, done), time.monotonic()
    # The last batch that is in is read once more, to see that the loader gives what it gave before.
    number = max(done - 1, 0)
    last: Item | None = None

    def write() -> None:
        part.last_batch = digest_of(last.batch.tensors) if last is not None else ""
        folder.save(own.key, part, own.beside)
        parts.append(part)

    with tqdm(total=length_of(loader), initial=done, desc=own.key, unit="batch",
              disable=None if progress else True) as bar:
        try:
            for given in batches_from(loader, number):
                item = samples.item(number, given)
                if number < done:
                    _check_repeats(item, parts[-1].last_batch, folder)
                else:
                    part.add(*(one(item) if item.batch.samples else ({}, Counted())))
                    bar.update()
                number, last = number + 1, item
                if number > done and time.monotonic() - saved >= every:
                    write()
                    part, saved = Part(number, number), time.monotonic()
        except KeyboardInterrupt:
            if part.end > part.first:
                write()
            raise
    if number < done:
        raise InputError(f"{folder.path} has {done} batches in, but the loader gives no more than {number}: it is not "
                         "the loader of that run")
    part.complete = True
    write()
    return parts


def _check_repeats(item: Item, digest: str, folder: Folder) -> None:
    if digest_of(item.batch.tensors) != digest:
        raise InputError(f"batch {item.number} is not the one that {folder.path} has in: this loader does not repeat "
                         "itself. Use shuffle=False, or a generator with a fixed seed, or name another folder")
