"""A loader's samples: a program for their losses, and what makes values of batches those of the whole data set."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.accumulate.batches import arguments_of, number_of_terms
from hbpcompiler.accumulate.weigh import Weigher, Weight, not_ignored
from hbpcompiler.compiled import Compiled
from hbpcompiler.compiler.built import Built
from hbpcompiler.compiler.trace.batch import Batch, batch_of
from hbpcompiler.compiler.trace.checks import check_batch
from hbpcompiler.entries import OF_SCORES, advice_for, not_cut, warn_of_optional
from hbpcompiler.errors import InputError, NoTermsError
from hbpcompiler.result import Result


@dataclass(frozen=True)
class Counted:
    """How many samples, and how many terms of a loss that is a mean over them."""

    samples: int = 0
    terms: float = 0.0
    over_terms: bool = False

    def __add__(self, other: Counted) -> Counted:
        return Counted(self.samples + other.samples, self.terms + other.terms, self.over_terms or other.over_terms)

    @classmethod
    def of(cls, weight: Weight) -> Counted:
        return cls(weight.samples, weight.terms, weight.mean or weight.counted)

    @property
    def scale(self) -> float:
        """What makes l_n of a sum of its terms, N over all terms; 1 for a loss that is a sum."""
        if self.over_terms and not self.terms and self.samples:
            raise InputError("the batches hold no terms of the mean by what count says, or all their targets are "
                             "ignored, so that it has no value")
        return self.samples / self.terms if self.over_terms and self.terms else 1.0


@dataclass(frozen=True)
class Item:
    """One batch."""

    number: int
    given: Any
    """As the loader gives it."""
    arguments: tuple[Any, ...]
    batch: Batch
    counted: float | None
    """What `count` said of it."""


class Samples:
    """The batches of one loader, and one program for them."""

    def __init__(self, program: Compiled, loader: Iterable[Any], prepare: Callable[[Any], Any] | None,
                 count: Callable[[Any], Any] | None, title: str) -> None:
        self.program, self.loader, self.title = program, loader, title
        self.device = next(program.model.parameters()).device
        self._prepare, self._count = prepare, count
        self._weighers: dict[int, tuple[Built, Weigher]] = {}
        self._told = False
        """Whether the first batch's entries have been looked at."""

    def item(self, number: int, given: Any) -> Item:
        """A batch as the loader gives it."""
        if not self._told:
            self._told = True
            warn_of_optional(self.program.model, given, self._prepare, OF_SCORES)
        with self.naming(number):
            arguments = arguments_of(given, self._prepare, self.device)
            counted = None if self._count is None else number_of_terms(self._count(given))
            return Item(number, given, arguments, batch_of(arguments), counted)

    def result(self, item: Item, **beside: Any) -> tuple[Result, Weight]:
        """What the program says of it, and what it counts. Random draws are those of the batch's number."""
        generator = torch.Generator().manual_seed(item.number)
        with self.naming(item.number, item.given):
            try:
                result = self.program(*item.arguments, generator=generator, **beside)
            except NoTermsError:  # its samples count for nothing, whatever their labels are
                result = self.program(*not_ignored(item.batch).arguments, generator=generator, **beside)
        return result, self.weight(item)

    def weight(self, item: Item) -> Weight:
        """What a batch counts."""
        with self.naming(item.number, item.given):
            built = self.program._program(check_batch(self.program.model, item.arguments))[1]
            if id(built) not in self._weighers:
                self._weighers[id(built)] = built, Weigher(self.program, built)
            return self._weighers[id(built)][1].weight(item.batch, item.counted)

    def gradients(self, item: Item, shapes: Mapping[str, Any]) -> tuple[dict[str, Tensor], Weight]:
        """{name: [N, *theta]}: the samples' gradients, but for `Counted.scale`; zeros where there is none."""
        result, weight = self.result(item)
        like = next(iter(result.batch_grad.values()))
        found = {name: result.batch_grad[name] * weight.of_loss if name in result.batch_grad
                 else like.new_zeros(weight.samples, *shape) for name, shape in shapes.items()}
        return found, weight

    @contextlib.contextmanager
    def naming(self, number: int, given: Any = None) -> Iterator[None]:
        """Errors say which batch it was."""
        try:
            yield
        except InputError as error:
            advice = not_cut(self.loader) + advice_for(error, given, self._prepare, OF_SCORES)
            raise type(error)(f"batch {number} of the {self.title}: {error}{advice}") from error
