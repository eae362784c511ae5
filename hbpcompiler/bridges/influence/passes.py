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
from hbpcompiler.bridges.influence.parts import Folder, Part
from hbpcompiler.bridges.influence.samples import Counted, Item, Samples
from hbpcompiler.bridges.influence.shards import Rows
from hbpcompiler.errors import InputError
from hbpcompiler.system.digest import digest_of


@dataclass(frozen=True)
class Pass:
    """Rows of scores."""

    key: str
    """How their files are called."""
    beside: Mapping[str, str]
    """What their files must be of, beside the run's."""


REPEAT = "Columns of scores are in the loader's order, which must be the same each time: use shuffle=False"
One = Callable[[Item], tuple[dict[str, Tensor], Counted]]
"""From a batch to its columns, [F, n] by name, and what it counts."""


def through(own: Pass, samples: Samples, loader: Iterable[Any], one: One, folder: Folder, every: float,
            progress: bool, before: Rows | None = None) -> Rows:
    """`one` batch after the other; written to the folder every so many seconds, at the end and on Ctrl-C.

    InputError where the loader gives other batches than in the pass before, or than files are of.
    """
    parts = _go(own, folder.saved(own.key, own.beside), samples, loader, one, folder, every, progress, before)
    counted, values, batches = Counted(), dict[str, list[Tensor]](), list[str]()
    for part in parts:
        counted += part.counted
        batches += part.batches
        for name, several in part.values.items():
            values.setdefault(name, []).extend(several)
    if before is not None and tuple(batches) != before.batches:
        raise InputError("the loader of the training data gave other batches than in the pass before. " + REPEAT)
    return Rows({name: torch.cat(several, 1) for name, several in values.items()}, counted, tuple(batches))


def _go(own: Pass, parts: list[Part], samples: Samples, loader: Iterable[Any],
        one: One, folder: Folder, every: float, progress: bool, before: Rows | None) -> list[Part]:
    done, complete = (parts[-1].end, parts[-1].complete) if parts else (0, False)
    part, saved = Part(done, done), time.monotonic()
    # The last batch that is in is read once more, to see that the loader gives what it gave before.
    number = max(done - 1, 0)

    def write() -> None:
        folder.save(own.key, part, own.beside)
        parts.append(part)

    with tqdm(total=length_of(loader), initial=done, desc=own.key, unit="batch",
              disable=None if progress else True) as bar:
        try:
            for given in batches_from(loader, number):
                item = samples.item(number, given.batch)
                digest = digest_of(item.batch.tensors)
                if number < done and digest != parts[-1].batches[-1]:
                    raise InputError(f"batch {number} of the training data is not the one that {folder.path} has in. "
                                     + REPEAT)
                if before is not None and before.batches[number : number + 1] != (digest,):
                    raise InputError(f"batch {number} of the training data is not the one of the pass before. {REPEAT}")
                if complete and number >= done:
                    raise InputError(f"{folder.path} has all {done} batches of the training data in, but the loader "
                                     "gives more: it is not the loader of that run")
                if number >= done:
                    part.add(*(one(item) if item.batch.samples else ({}, Counted())), digest)
                    bar.update()
                number += 1
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
    if not complete:
        part.complete = True
        write()
    return parts
