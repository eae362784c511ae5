"""Which way blocks of vectors take: torch's passes, or two compiled programs. It is measured, and shown.

Passes send each vector forward and backward. The programs send the K columns of a sample back once for all vectors, and
each vector once: the more vectors, the more they gain. They have to be compiled, so they are not tried before blocks
have taken about as long as that.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from hbpcompiler.calls.long_calls import in_words
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import HbpError, OptionError, ProofError
from hbpcompiler.operators.passes import Passes
from hbpcompiler.operators.products import Products, joined
from hbpcompiler.operators.programs import Programs
from hbpcompiler.operators.vectors import Columns

AUTO, PASSES, PROGRAMS = "auto", "passes", "programs"
CHOICES = (AUTO, PASSES, PROGRAMS)
IN_WORDS = {PASSES: "torch's passes", PROGRAMS: "two compiled programs"}
PATIENCE = 5.0
"""Seconds that blocks have taken by passes before the programs are made."""
COLUMNS = 4
"""Times as many columns a sample as vectors: programs cannot gain."""
ENOUGH = 0.5
"""Seconds of measurement."""


@dataclass(frozen=True)
class Trial:
    """Both ways on one block."""

    vectors: int
    """How many."""
    passes: float
    """Seconds by torch's passes."""
    programs: float
    """Seconds by the programs."""

    @property
    def way(self) -> str:
        return PROGRAMS if self.programs < self.passes else PASSES

    def __str__(self) -> str:
        return (f"{self.vectors} vectors: {IN_WORDS[self.way]} (measured: {in_words(self.programs)} by two programs, "
                f"{in_words(self.passes)} by torch's passes)")


@dataclass
class Blocks:
    """The ways of blocks of vectors of one operator, and what was measured. As text, in words."""

    products: Products
    programs: Programs | None
    choice: str
    """AUTO, or the way that was asked for."""
    note: str
    """Why the programs are not tried, if so."""
    patience: float = PATIENCE
    trials: list[Trial] = field(default_factory=list)
    _spent: float = 0.0
    """Seconds of blocks by passes."""

    def way(self, vectors: int) -> str | None:
        """Of blocks of so many vectors; None where that is not known yet."""
        if self.choice != AUTO:
            return self.choice
        if self.programs is None or any(trial.way == PASSES and trial.vectors >= vectors for trial in self.trials):
            return PASSES
        if any(trial.way == PROGRAMS and trial.vectors <= vectors for trial in self.trials):
            return PROGRAMS
        return None

    def times(self, number: int, batch: Batch, columns: Columns) -> Columns:
        """[F, *theta] each."""
        count = len(columns[0])
        width = min(count, self.products.chunk)
        if width == 1 or self.way(width) == PASSES:
            return self.products.times(number, batch, columns)
        parts = []
        for start in range(0, count, width):
            part = [column[start : start + width] for column in columns]
            parts.append(self._block(width, number, batch, part))
        return joined(parts)

    def _block(self, width: int, number: int, batch: Batch, part: Columns) -> Columns:
        """Its vectors go through at once; `width` are a whole block."""
        way = self.way(width)
        if way == PROGRAMS and self.programs is not None:
            with nullcontext() if self.choice == PROGRAMS else suppress(HbpError):  # as the model is now, it may refuse
                return self.programs.times(number, batch, part)
        if way is None and len(part[0]) == width and self._spent >= self.patience:
            return self._tried(width, number, batch, part)
        began = perf_counter()
        product = self.products.times(number, batch, part)
        self._spent += _seconds_since(began, part)
        return product

    def _tried(self, width: int, number: int, batch: Batch, part: Columns) -> Columns:
        """Both ways, one after the other. Raises ProofError if they do not agree, though
        nothing is drawn."""
        product = self.products.times(number, batch, part)
        columns = columns_of(self.products.passes, number, batch)
        if columns > COLUMNS * width:
            self._leave_out(f"the model has {columns} outputs a sample, so that two programs would send as many "
                            f"columns back for {width} vectors")
            return product
        assert self.programs is not None
        try:
            found = self.programs.times(number, batch, part)
        except (HbpError, torch.OutOfMemoryError) as error:
            self._leave_out(f"two programs cannot be had: {error}")
            return product
        if not same_products(found, product):
            if not self.products.passes.draws(number, batch):
                raise ProofError(_differing(found, product))
            self._leave_out("two programs draw otherwise than these")
            return product
        seconds: dict[str, list[float]] = {PASSES: [], PROGRAMS: []}
        while sum(map(sum, seconds.values())) < ENOUGH:
            for name, way in ((PASSES, self.products.times), (PROGRAMS, self.programs.times)):
                began = perf_counter()
                seconds[name].append(_seconds_since(began, way(number, batch, part)))
        self.trials.append(Trial(width, min(seconds[PASSES]), min(seconds[PROGRAMS])))
        return product

    def _leave_out(self, note: str) -> None:
        self.programs, self.note = None, note

    def __str__(self) -> str:
        if self.choice != AUTO:
            return f"blocks of vectors: {IN_WORDS[self.choice]}, as asked for"
        if self.trials:
            return "\n".join(map(str, sorted(self.trials, key=lambda trial: trial.vectors)))
        if self.programs is None:
            return f"blocks of vectors: {IN_WORDS[PASSES]}; {self.note}"
        return (f"blocks of vectors: {IN_WORDS[PASSES]}; two programs are tried when these have taken "
                f"{in_words(self.patience)}")


def blocks_of(products: Products, passes: Passes, choice: str, is_ggn: bool) -> Blocks:
    """Raises OptionError for what cannot be asked for."""
    if not isinstance(choice, str) or choice not in CHOICES:
        raise OptionError(f"blocks {choice!r} is unknown; choose one of {', '.join(CHOICES)}")
    if choice == PROGRAMS and not is_ggn:
        raise OptionError(f"blocks={PROGRAMS!r} is for kind 'ggn', whose square root has programs")
    programs = Programs(passes) if is_ggn else None
    return Blocks(products, programs, choice, "" if is_ggn else "only the GGN has programs")


def columns_of(passes: Passes, number: int, batch: Batch) -> int:
    """At most so many does a sample send back: the numbers that the model returns for it."""
    with torch.no_grad(), passes.careful(), passes.held(), passes.drawn(number, batch):
        outputs, _ = passes.outputs(batch)
    return sum(output.numel() for output in outputs if output.is_floating_point()) // batch.samples


def _seconds_since(began: float, product: Columns) -> float:
    """When the product is there: a GPU answers before it has computed."""
    if product[0].is_cuda:
        torch.cuda.synchronize(product[0].device)
    return perf_counter() - began


def same_products(found: Columns, expected: Columns) -> bool:
    """But for rounding, beside the largest number."""
    return _gap(found, expected) <= 3 * torch.finfo(found[0].dtype).eps ** 0.5 * _largest(expected)


def _differing(found: Columns, expected: Columns) -> str:
    return (f"products with this GGN differ by {_gap(found, expected):.3g}, where the largest number is "
            f"{_largest(expected):.3g}, between torch's passes and two compiled programs: one of them is wrong. "
            "blocks='passes' keeps to the passes, and leaves this trial out")


def _gap(found: Columns, expected: Columns) -> float:
    return _largest([one - other for one, other in zip(found, expected, strict=True)])


def _largest(tensors: list[Tensor]) -> float:
    return max(float(tensor.abs().max()) for tensor in tensors if tensor.numel())
