"""Scores as they grow: kept in memory, and in a folder whose files a later run goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.accumulate.checkpoint import read_file, write_file
from hbpcompiler.bridges.influence.samples import Counted
from hbpcompiler.errors import InputError, listing

FORMAT = "hbpcompiler scores 2"


@dataclass
class Part:
    """Scores of consecutive batches, `first` to `end`."""

    first: int
    end: int
    values: dict[str, list[Tensor]] = field(default_factory=dict)
    """By parameter, or of all as ""; [F, n] for each batch."""
    counted: Counted = field(default_factory=Counted)
    batches: list[str] = field(default_factory=list)
    """A hash of each batch."""
    complete: bool = False
    """Whether the loader's end was reached."""

    def add(self, values: Mapping[str, Tensor], counted: Counted, digest: str) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append(value.cpu())
        self.counted += counted
        self.batches.append(digest)
        self.end += 1


class Folder:
    """The files of one run, `header` says of what; None: nothing is written."""

    def __init__(self, path: Path | None, header: Mapping[str, str], suffix: str) -> None:
        self.path, self.header, self.suffix = path, dict(header), suffix

    def saved(self, key: str, beside: Mapping[str, str]) -> list[Part]:
        """What files hold of one set of rows, without gaps from the first batch on.

        InputError for files of another run, with every difference; they stay as they are.
        """
        if self.path is None or not self.path.is_dir():
            return []
        found: list[Part] = []
        read = [self._read(path, beside) for path in self.path.glob(f"{key}.batches-*{self.suffix}.pt")]
        for part in sorted(read, key=lambda part: (part.first, part.end)):
            if part.first == (found[-1].end if found else 0):
                found.append(part)
        return found

    def save(self, key: str, part: Part, beside: Mapping[str, str]) -> None:
        """Write a file, whole or not at all."""
        if self.path is None:
            return
        values = {name: torch.cat(several, 1) for name, several in part.values.items()}
        held = {"format": FORMAT, "header": {**self.header, **beside}, "values": values,
                "counted": asdict(part.counted), "first": part.first, "end": part.end, "batches": part.batches,
                "complete": part.complete}
        write_file(self.path / f"{key}.batches-{part.first}-{part.end}{self.suffix}.pt", held)

    def _read(self, path: Path, beside: Mapping[str, str]) -> Part:
        held: Any = read_file(path, FORMAT)
        try:
            here, there = {**self.header, **beside}, dict(held["header"])
            differences = [f"{name}: {here.get(name, 'absent')} here, {there.get(name, 'absent')} there"
                           for name in {**here, **there} if here.get(name) != there.get(name)]
            part = Part(int(held["first"]), int(held["end"]), {name: [value] for name, value in held["values"].items()},
                        Counted(**held["counted"]), list(held["batches"]), bool(held["complete"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); it is left as it is") from error
        if differences:
            raise InputError(listing(f"{path} holds scores of another run; it is left as it is. Differences, this "
                                     "run's value and the file's:", differences,
                                     "Name another folder, or remove the file."))
        return part
