"""Which function carries out which step of a plan. A new kind of step is a function and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hbpcompiler.compiler.derive.backward import Backward
from hbpcompiler.compiler.derive.begin import birth, seed, seed_output
from hbpcompiler.compiler.derive.close import close, tied
from hbpcompiler.compiler.derive.cross import pull, widen
from hbpcompiler.compiler.derive.gather import add_up, gather, unite
from hbpcompiler.compiler.derive.kfra import average
from hbpcompiler.compiler.derive.neighbourhood_loop import walk_local_tail
from hbpcompiler.compiler.derive.sample import sample
from hbpcompiler.compiler.derive.sample_loop import walk_sample_chunks
from hbpcompiler.compiler.derive.sample_pairs import walk_sample_pairs
from hbpcompiler.compiler.derive.second_phase import sum_each, weigh, weigh_samples
from hbpcompiler.compiler.derive.tail_loop import walk_tail
from hbpcompiler.compiler.derive.tied_rows import tied_rows
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.plan.steps import (
    AddUp,
    Average,
    Birth,
    Close,
    Gather,
    LocalTail,
    Pull,
    Sample,
    SampleChunks,
    SamplePairs,
    Seed,
    SeedOutput,
    SumEach,
    Tail,
    Tied,
    TiedRows,
    Unite,
    Weigh,
    Weights,
    Widen,
)
from hbpcompiler.compiler.program.writer import Writer
from hbpcompiler.rule import Op

HANDLERS: Mapping[type, Callable[[Backward, Any], None]] = {
    Seed: seed,
    SeedOutput: seed_output,
    Birth: birth,
    Pull: pull,
    Widen: widen,
    Gather: gather,
    Unite: unite,
    AddUp: add_up,
    Average: average,
    Sample: sample,
    Close: close,
    Tied: tied,
    TiedRows: tied_rows,
    Tail: walk_tail,
    LocalTail: walk_local_tail,
    SampleChunks: walk_sample_chunks,
    SamplePairs: walk_sample_pairs,
    Weights: weigh_samples,
    Weigh: weigh,
    SumEach: sum_each,
}


def backward_pass(matched: Matched, plan: Plan, writer: Writer, ops: Mapping[str, Op], batch: Any, *,
                  columns: Mapping[tuple[str, str], Any] | None = None,
                  signs: Mapping[str, Any] | None = None) -> Backward:
    """A backward pass that can carry out every step; `batch` is the number of samples."""
    return Backward(matched, plan, writer, ops, batch, HANDLERS, columns=columns, signs=signs)
