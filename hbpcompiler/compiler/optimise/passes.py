"""Stage 5, optimise: all passes over the program in a row, with what each needs and makes.

What holds of every program is checked behind the last; where that fails, behind each, so that the one is named that
breaks the program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from torch import fx

from hbpcompiler.compiler.optimise.channels_last import use_channels_last
from hbpcompiler.compiler.optimise.constants import drop_constant_factors, drop_ones
from hbpcompiler.compiler.optimise.early import finish_early
from hbpcompiler.compiler.optimise.hoist import hoist_from_loops
from hbpcompiler.compiler.optimise.in_place import write_in_place
from hbpcompiler.compiler.optimise.index_sums import add_at_index
from hbpcompiler.compiler.optimise.joined_loops import join_loops
from hbpcompiler.compiler.optimise.joined_products import join_products
from hbpcompiler.compiler.optimise.matrix_products import multiply_matrices
from hbpcompiler.compiler.optimise.onednn import multiply_by_onednn
from hbpcompiler.compiler.optimise.operands_once import form_operands_once
from hbpcompiler.compiler.optimise.outer_sums import call_outer_sums
from hbpcompiler.compiler.optimise.rounding import round_what_columns_meet
from hbpcompiler.compiler.optimise.said_lengths import say_lengths
from hbpcompiler.compiler.optimise.scaling import divide_before_products
from hbpcompiler.compiler.optimise.settings import Settings
from hbpcompiler.compiler.optimise.share import share_common_subexpressions
from hbpcompiler.compiler.optimise.simplify import (
    cancel_inverses,
    drop_dead,
    drop_idle_axes,
    drop_idle_casts,
    drop_idle_reshapes,
    drop_neutral,
    drop_turns_back,
    read_shapes_at_the_source,
)
from hbpcompiler.compiler.optimise.totals import add_to_totals, scale_as_totals_grow, write_first
from hbpcompiler.compiler.program.check import BrokenProgramError, Level, check_program
from hbpcompiler.compiler.program.shapes import annotate
from hbpcompiler.compiler.program.writer import Loop


class Fact(Enum):
    """What may be true of a program from some pass on."""

    DTYPES = "what columns of curvature meet has their dtype"
    SHAPES = "of every node it is said what it makes"
    PRODUCTS = "einsums that are products of matrices are written so"
    OVERWRITTEN = "values may be overwritten"


DTYPES, SHAPES, PRODUCTS, OVERWRITTEN = Fact
Run = Callable[[fx.Graph, Settings], None]


@dataclass(frozen=True)
class Pass:
    """One rewriting of the program, the same numbers before and after."""

    name: str
    run: Run
    needs: frozenset[Fact] = frozenset()
    """What must be true before it."""
    makes: frozenset[Fact] = frozenset()
    """What is true after it."""
    not_after: frozenset[Fact] = frozenset({OVERWRITTEN})
    """What must not be true yet."""
    when: Callable[[Settings], bool] = lambda settings: True
    """Whether it is run at all; what it makes is taken for true if not."""
    in_loops: bool = True
    """Whether it is run on loops' bodies, innermost first, before the program; False: it enters them itself."""


def _simple(run: Callable[[fx.Graph], None], *needs: Fact) -> Pass:
    """A pass that knows nothing but the program."""
    return Pass(run.__name__, lambda graph, settings: run(graph), frozenset(needs))


PASSES: tuple[Pass, ...] = (
    Pass("round_what_columns_meet",
         lambda graph, settings: round_what_columns_meet(graph, settings.curvature_dtype or settings.dtype,
                                                         settings.dtype, settings.arguments),
         makes=frozenset({DTYPES}), not_after=frozenset({SHAPES, OVERWRITTEN}), in_loops=False,
         when=lambda settings: settings.curvature_dtype is not None),
    _simple(share_common_subexpressions),
    _simple(cancel_inverses),
    _simple(share_common_subexpressions),
    _simple(read_shapes_at_the_source),
    _simple(drop_dead),
    _simple(hoist_from_loops, DTYPES),
    _simple(cancel_inverses),
    _simple(share_common_subexpressions),
    _simple(read_shapes_at_the_source),
    _simple(drop_dead),
    _simple(form_operands_once),
    _simple(join_loops),
    Pass("multiply_matrices", lambda graph, settings: multiply_matrices(graph, settings.by_pixels),
         makes=frozenset({PRODUCTS})),
    Pass("annotate", lambda graph, settings: annotate(graph, settings.arguments),
         needs=frozenset({DTYPES, PRODUCTS}), makes=frozenset({SHAPES}), in_loops=False),
    _simple(drop_neutral, SHAPES),
    _simple(drop_idle_axes, SHAPES),
    _simple(drop_turns_back, SHAPES),
    _simple(drop_idle_reshapes, SHAPES),
    _simple(say_lengths, SHAPES),
    _simple(drop_constant_factors, SHAPES),
    _simple(drop_ones, SHAPES),
    _simple(share_common_subexpressions, SHAPES),
    _simple(drop_dead),
    _simple(drop_idle_casts, SHAPES),
    _simple(drop_dead),
    _simple(add_at_index, SHAPES),
    Pass("use_channels_last", lambda graph, settings: use_channels_last(graph, settings.images),
         needs=frozenset({SHAPES}), when=lambda settings: settings.by_pixels),
    _simple(divide_before_products, SHAPES),
    Pass("join_products", lambda graph, settings: join_products(graph, settings.limits, settings.chunk),
         needs=frozenset({SHAPES, PRODUCTS})),
    Pass("multiply_by_onednn",
         lambda graph, settings: multiply_by_onednn(graph, settings.machine, settings.limits, settings.chunk),
         needs=frozenset({SHAPES, PRODUCTS}),
         when=lambda settings: settings.machine.linear_per_second > settings.machine.multiply_adds_per_second),
    _simple(add_to_totals, SHAPES),
    _simple(scale_as_totals_grow, SHAPES),
    Pass("write_first",
         lambda graph, settings: write_first(graph, settings.limits.large_numbers, settings.limits.huge_page_bytes),
         needs=frozenset({SHAPES})),
    Pass("finish_early", lambda graph, settings: finish_early(graph, settings.limits.large_numbers),
         needs=frozenset({SHAPES}), in_loops=False),
    Pass("write_in_place", lambda graph, settings: write_in_place(graph, settings.limits.large_numbers),
         needs=frozenset({SHAPES}), makes=frozenset({OVERWRITTEN}), not_after=frozenset()),
    Pass("call_outer_sums", lambda graph, settings: call_outer_sums(graph),
         needs=frozenset({SHAPES, PRODUCTS, OVERWRITTEN}), not_after=frozenset()),
)
"""In the order in which they are run."""


def optimise(graph: fx.Graph, settings: Settings, passes: Sequence[Pass] = PASSES, each: bool = True) -> None:
    """Run the passes. Raises BrokenProgramError if one breaks the program: naming the pass and those before it with
    `each`, for which all of the program is looked at behind each pass; otherwise it is looked at behind the last.

    Raises ValueError if the passes stand in an order in which one of them lacks what it needs.
    """
    levels = list(levels_behind(passes))
    if each:
        _checked(graph, Level.DERIVED, "the backward pass left a broken program")
    done: list[str] = []
    for step, level in zip(passes, levels, strict=True):
        if not step.when(settings):
            continue
        _run(step, graph, settings)
        if each:
            _checked(graph, level, f"the pass {step.name} left a broken program, after {', '.join(done) or 'no other'}")
        done.append(step.name)
    if not each:
        _checked(graph, max(levels), f"the passes left a broken program: {', '.join(done)}")


def levels_behind(passes: Sequence[Pass]) -> Iterator[Level]:
    """How far the program is behind each pass. Raises ValueError where one lacks what it needs, or comes too late."""
    found, known = [], frozenset[Fact]()
    for step in passes:
        if missing := step.needs - known:
            raise ValueError(f"the pass {step.name} needs: {'; '.join(sorted(fact.value for fact in missing))}")
        if late := step.not_after & known:
            raise ValueError(f"the pass {step.name} comes after: {'; '.join(sorted(fact.value for fact in late))}")
        known |= step.makes
        found.append(Level.FINAL if OVERWRITTEN in known else Level.SHAPED if SHAPES in known else Level.DERIVED)
    return iter(found)


def _run(step: Pass, graph: fx.Graph, settings: Settings) -> None:
    if step.in_loops:
        for node in list(graph.nodes):
            if isinstance(node.target, Loop):
                _run(step, node.target.body, replace(settings, chunk=node.target.chunk))
    step.run(graph, settings)


def _checked(graph: fx.Graph, level: Level, blame: str) -> None:
    try:
        check_program(graph, level)
    except BrokenProgramError as error:
        raise BrokenProgramError(f"{blame}: {error}") from error
