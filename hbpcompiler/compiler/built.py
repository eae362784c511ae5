"""A loaded program and what it was made from, and the programs made of it that add, or draw by sample."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from hbpcompiler.codegen import load
from hbpcompiler.compiler.budget import Draft
from hbpcompiler.compiler.match.losses.targets import LossCheck
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.plan.stored import stored
from hbpcompiler.compiler.program.adding import Slot, Slots, adding, slots_of
from hbpcompiler.compiler.program.by_sample import by_sample, draws_of
from hbpcompiler.compiler.program.pages import use_huge_pages
from hbpcompiler.compiler.program.shapes import asked
from hbpcompiler.compiler.stages import Seconds
from hbpcompiler.compiler.trace.batch import Batch, serves_order
from hbpcompiler.compiler.trace.conditions.asked import Asked
from hbpcompiler.compiler.trace.conditions.layouts import Order
from hbpcompiler.compiler.trace.conditions.sizes import Sizes
from hbpcompiler.compiler.trace.containers import Structure
from hbpcompiler.errors import InputError, UnsupportedOpError
from hbpcompiler.system.threads import TRACING
from hbpcompiler.values import Stored

PYTHON = "python"
"""The backend whose programs are plain functions of Python."""
KEPT_ADDING = 4
"""Programs that differ in what they add to given tensors: a caller has one or two."""


@dataclass
class Built:
    """One program and what it was made from.

    What a stage returned does not change; what calls have learnt does: `used`, `proven`, `announced` and the programs
    that add to tensors (`that_adds`).
    """

    matched: Matched
    draft: Draft
    path: Path
    program: Any
    constants: Mapping[str, Tensor]
    """Tensors that the trace made or found, by the name under which the program asks for them."""
    places: Mapping[str, int]
    """Where in Python's state those of them lie that are read anew at each call."""
    losses: Sequence[LossCheck]
    structure: Structure
    """How the model's output is built of its tensors."""
    fields: tuple[str, ...]
    """The fields of the program's result that hold them."""
    run: Callable[..., Any]
    seconds: Seconds
    sizes: Sizes
    """The batch sizes that it serves."""
    asked: Asked
    """What code asks a batch beside its numbers."""
    orders: tuple[Order, ...] | None
    """How batches that it serves lie in memory; None: that is not asked."""
    backend: str
    as_values: frozenset[str] = frozenset()
    """Parameters that had to be matched as values."""
    reused: bool = False
    """Whether its trace was made for another program (see `trace.exports`)."""
    whole: Built | None = None
    """The program for any length, of which this is what it is at one."""
    used: int = 0
    """The number of the call that used it last."""
    proven: set[bool] = field(default_factory=set)
    """For batches of one sample (True), of several (False): code that goes another way for one, as squeeze() does,
    leaves no trace of it."""
    announced: set[int] = field(default_factory=set)
    """Batch sizes of which has been said that they take long."""
    _adding: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    """Programs that add to given tensors: by the slots, and whether they draw by sample."""

    @cached_property
    def stored(self) -> Mapping[str, Stored]:
        """The parameters as the model has them, by name."""
        return stored(self.draft.plan, self.matched.trainable)

    @cached_property
    def asks(self) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
        """The call arguments of the program, and what it asks of those that are dicts of tensors."""
        return asked(self.draft.graph)

    @cached_property
    def draws(self) -> bool:
        """Whether it draws random numbers."""
        return bool(draws_of(self.draft.graph))

    @cached_property
    def by_sample(self) -> tuple[Any, list[str]]:
        """The same program, but that it draws by sample (see `program.by_sample`), and what it draws otherwise."""
        if self.whole is not None:
            return self.whole.by_sample
        graph, left = self._by_sample
        return loaded(self.draft.written(graph), self.backend)[0], left

    @cached_property
    def _by_sample(self) -> tuple[fx.Graph, list[str]]:
        return by_sample(self.draft.graph)

    @cached_property
    def slots(self) -> Slots:
        """What makes each tensor of its result."""
        return slots_of(self.draft.graph)

    def that_adds(self, slots: Collection[Slot], same: Mapping[Slot, Slot], triangles: frozenset[Slot],
                  by_sample: bool) -> Any:
        """The same program, or the one that draws by sample, but that it adds its results in these slots to tensors
        that it is given (see `program.adding`)."""
        key = frozenset(slots), frozenset(same.items()), triangles, by_sample
        if key not in self._adding:
            if len(self._adding) >= KEPT_ADDING:
                self._adding.pop(next(iter(self._adding)))
            graph = self._by_sample[0] if by_sample else self.draft.graph
            self._adding[key] = loaded(self.draft.written(adding(graph, slots, same, triangles)), self.backend)[0]
        return self._adding[key]

    def serves(self, batch: Batch) -> bool:
        """Whether it is for batches of this size, and that lie so. Raises InputError where code asks a batch for what
        is not its numbers, and the answer is not that of a new tensor."""
        if self.asked.lines and (refused := self.asked.refused(batch.layout.labels, batch.tensors)):
            raise InputError(refused)
        return self.sizes.include(batch.samples) and serves_order(self.orders, batch)

    def as_asked(self, batch: Batch) -> Batch:
        """The batch, of which copies lie as it does where code asks for that."""
        return batch if self.orders is None else batch.keeping_order()

    def is_proven(self, samples: int) -> bool:
        """Whether batches of this size may be used without a proof, or had one."""
        return (samples == 1) in self.proven


def loaded(code: str, backend: str) -> tuple[Any, Path]:
    """The program of a text, prepared by the backend, and its file. UnsupportedOpError where TorchScript has no form of
    a call in it."""
    program, path = load.program(code)
    if backend == "torchscript":
        with warnings.catch_warnings():  # of its deprecation: the user can do nothing about it
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            try:
                program = torch.jit.script(program)
            except RuntimeError as error:
                raise UnsupportedOpError(_what_torchscript_lacks(str(error), path)) from error
    elif backend == "inductor":
        program = torch.compile(program)
    else:
        use_huge_pages(sys.modules[type(program).__module__])
    return program, path


def directly(program: Any, backend: str) -> Callable[..., Any]:
    """What runs it, where an export in another thread may have put wrappers around nn.Module.__call__, for all threads.
    """
    return getattr(program, "forward", program) if backend == PYTHON else program


def beside_exports(backend: str) -> AbstractContextManager[None]:
    """Exports change for all threads how TorchScript's methods and compiled modules are called, too: those wait."""
    return nullcontext() if backend == PYTHON else TRACING


def _what_torchscript_lacks(text: str, path: Path) -> str:
    """The line of the file that torch points at, and what to do."""
    place = re.search(rf'File "{re.escape(str(path))}", line (\d+)', text)
    line = path.read_text(encoding="utf-8").splitlines()[int(place[1]) - 1].strip() if place else ""
    return (f"TorchScript has no form of a call in the program{f', {line!r} ({path}:{place[1]})' if place else ''}: "
            "leave out backend='torchscript'; the program in Python gives the same numbers")
