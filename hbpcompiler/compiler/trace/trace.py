"""Stage 1, trace: a model, a loss and a batch become a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from hbpcompiler.compiler.trace.batch import Batch, Layout, serves_order
from hbpcompiler.compiler.trace.conditions.asked import NOTHING, Asked
from hbpcompiler.compiler.trace.conditions.layouts import Order, orders_of
from hbpcompiler.compiler.trace.conditions.sizes import EVERY, Sizes, sizes_of
from hbpcompiler.compiler.trace.conditions.values import Answers
from hbpcompiler.compiler.trace.containers import Structure
from hbpcompiler.compiler.trace.ends import AT_LOSS, Ends, with_ends
from hbpcompiler.compiler.trace.export import export, quoted_names
from hbpcompiler.compiler.trace.fx_graph import reader
from hbpcompiler.compiler.trace.fx_graph.described import forget_described
from hbpcompiler.compiler.trace.fx_graph.functional import taken_apart
from hbpcompiler.compiler.trace.graph import Graph
from hbpcompiler.compiler.trace.patches.shapes import right_shapes
from hbpcompiler.errors import ModelError, listing
from hbpcompiler.rule import ModuleRule

FEW = (2, 3)
"""Batch sizes at which code meant for the smallest batches is met; torch.export takes none of one sample."""


@dataclass(frozen=True)
class Traced:
    """What torch.export found, and how to read it."""

    exported: Any
    """The ExportedProgram of the batch's tensors -> (loss, *outputs)."""
    model: nn.Module
    loss: Callable[..., Tensor]
    layout: Layout
    returned: Structure
    """How the model's output is built of the graph's outputs."""
    sizes: Sizes = EVERY
    """The batch sizes for which this holds."""
    asked: Asked = NOTHING
    """What code asks the batch beside its numbers."""
    orders: tuple[Order, ...] | None = None
    """How batches lie in memory for which this holds; None: that is not asked."""
    ends: Ends = AT_LOSS
    """Where derivatives begin."""
    batch: tuple[Tensor, ...] = ()
    """The tensors that it was traced with, inputs first."""
    reused: bool = False
    """Whether it was made for another program (see `exports`)."""

    @cached_property
    def graph(self) -> Graph:
        """Values, and the operations that make them."""
        return with_ends(reader.read(self.exported, self.model, self.layout), self.ends)

    def serves(self, batch: Batch) -> bool:
        """Whether it holds for a batch of its form."""
        return self.sizes.include(batch.samples) and serves_order(self.orders, batch)

    @property
    def constants(self) -> Mapping[str, Tensor]:
        """Tensors that the trace found in Python's state or made, by the name that the program asks for them by."""
        return reader.constants(self.exported)

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Parameters, buffers and constants by the name under which the program asks for them."""
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers()), **self.constants,
                **reader.loss_tensors(self.loss)}

    def decomposed(self, table: Mapping[Any, Any]) -> Traced:
        """The same with some operations, by overload, taken apart."""
        with right_shapes(self.model), quoted_names():
            apart = taken_apart(self.exported, table)
        forget_described(apart)
        return replace(self, exported=apart)


def trace(model: nn.Module, loss: Callable[..., Tensor], batch: Batch,
          modules: Mapping[type[nn.Module], ModuleRule] | None = None, answers: Answers | None = None,
          ends: Ends = AT_LOSS) -> Traced:
    """Run torch.export, so that what it finds holds for this batch's size: once, unless code compares the size.

    `modules` are traced through their rules' forward; `answers` are what Python code made of tensors' values when it
    ran (see `values`). Raises ModelError where tracing is impossible.
    """
    exported, returned = export(model, loss, batch, modules, answers)
    if exported.asked.asks_for_order(batch.tensors):
        batch = batch.keeping_order()
        exported, returned = export(model, loss, batch, modules, answers)
    sizes, asked = sizes_of(exported), exported.asked
    for samples in (batch.samples, *FEW):
        if sizes.include(batch.samples):
            break
        if samples > 1:
            exported, returned = export(model, loss, batch, modules, answers, samples)
            sizes, asked = sizes_of(exported), exported.asked
    else:
        raise ModelError(listing(
            f"The model cannot be traced for a batch of {batch.samples}: its code goes a way of its own there, which "
            "torch.export does not follow; pass more samples, or write it for any number:",
            sizes.excluding(batch.samples)))
    forget_described(exported)
    orders = orders_of(batch.tensors) if asked.order else None
    return Traced(exported, model, loss, batch.layout, returned, sizes, asked, orders, ends, batch.tensors)
