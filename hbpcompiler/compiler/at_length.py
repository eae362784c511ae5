"""What the stages make of a model at one length of its axes, by what was decided at the first; compared with that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, fx, nn

from hbpcompiler.arguments import Brought
from hbpcompiler.compiler.built import Built
from hbpcompiler.compiler.cost.decisions import OtherDecisionsError, followed
from hbpcompiler.compiler.drafting import Drafting
from hbpcompiler.compiler.lengths.walk import LengthsDifferError
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.pipeline import Places, closings_for, matched_for, traced_for
from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.stages import Seconds
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.conditions.values import Answers
from hbpcompiler.compiler.trace.exports import Shelf
from hbpcompiler.compiler.trace.graph import Operation
from hbpcompiler.compiler.trace.trace import Traced
from hbpcompiler.errors import HbpError
from hbpcompiler.options import Options


@dataclass(frozen=True)
class ModelAt:
    """What the model does at one length, as far as it is compared."""

    length: int
    matched: Matched
    traced: Traced
    places: Mapping[str, int]
    """Where in Python's state constants lie."""


@dataclass(frozen=True)
class At(ModelAt):
    """What the stages make of the model at one length, as far as it is compared."""

    graph: fx.Graph
    planned: Callable[[Matched], Plan]
    """The plan for a graph, by the decisions that are followed."""


def stages_at(model: nn.Module, loss: Callable[..., Tensor], batch: Batch, options: Options, answers: Answers,
              places: Places, shelf: Shelf | None, first: Built, length: int) -> At:
    """The stages for a batch of another length, by what was decided at the first. Raises LengthsDifferError."""
    seconds, resources = Seconds(), first.draft.resources
    try:
        traced, matched = _matched(model, loss, batch, options, answers, shelf, first, length)
        drafting = Drafting(model, matched, closings_for(options), first.fields, options, batch, seconds, Brought(),
                            traced.sizes)
        with followed(first.draft.decisions):
            planned = drafting.planned(resources)
            program = drafting.optimised(drafting.derived(planned), planned, resources)
    except (HbpError, OtherDecisionsError) as error:
        raise LengthsDifferError(f"at a length of {length}: {str(error).splitlines()[0]}") from error
    return At(length, matched, traced, places(traced.constants), program.graph,
              lambda matched: replace(drafting, matched=matched).planned(resources))


def model_at(model: nn.Module, loss: Callable[..., Tensor], batch: Batch, options: Options, answers: Answers,
             places: Places, shelf: Shelf | None, first: Built, length: int) -> ModelAt:
    """The first two stages alone. Raises LengthsDifferError."""
    try:
        traced, matched = _matched(model, loss, batch, options, answers, shelf, first, length)
    except HbpError as error:
        raise LengthsDifferError(f"at a length of {length}: {str(error).splitlines()[0]}") from error
    return ModelAt(length, matched, traced, places(traced.constants))


def _matched(model: nn.Module, loss: Callable[..., Tensor], batch: Batch, options: Options, answers: Answers,
             shelf: Shelf | None, first: Built, length: int) -> tuple[Traced, Matched]:
    traced = traced_for(model, loss, batch, options, Seconds(), answers, shelf)
    matched = matched_for(traced, options, first.as_values, first.draft.resources.limits)
    check_operations(first.matched, matched, length)
    return traced, matched


def check_operations(first: Matched, other: Matched, length: int) -> None:
    """That the model does the same things. Raises LengthsDifferError, naming where it does more or less."""
    here, there = ([operation.target for operation in matched.graph.operations] for matched in (first, other))
    if here == there:
        return
    counts, others = (Counter(_place(operation) for operation in matched.graph.operations)
                      for matched in (first, other))
    for place in [*counts, *others]:
        if counts[place] != others[place]:
            raise LengthsDifferError(f"{place} is {counts[place]} operations at the first length and {others[place]} "
                                     f"at a length of {length}: a loop over positions, written out step by step, or a "
                                     "choice that Python makes by the length")
    raise LengthsDifferError(f"at a length of {length} the model goes another way")


def _place(operation: Operation) -> str:
    source = operation.source
    return "the loss" if source.in_loss else f"module {source.module!r}" if source.module else "the model's forward"
