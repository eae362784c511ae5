"""Inner products of columns in pairs of blocks of samples: the loop of a `SamplePairs` step.

Columns of all samples at once would fill the memory. Any two samples meet in some pair of blocks, so a turn sends the
columns of one pair through the model and writes the inner products among its samples into the whole matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hbpcompiler.compiler.derive.backward import Backward
from hbpcompiler.compiler.plan.arrivals import reads
from hbpcompiler.compiler.plan.steps import Close, SamplePairs, Tied, place_of
from hbpcompiler.compiler.program.grams import mirror_
from hbpcompiler.compiler.program.pairs import pairs_of_blocks, put_pairs_
from hbpcompiler.compiler.program.writer import Part, named
from hbpcompiler.quantities import CROSS, GRAM, Closing

Place = tuple[str, Closing]
"""A group of parameters and what is added up over them."""


def walk_sample_pairs(backward: Backward, step: SamplePairs) -> None:
    """Carry out the steps for each pair of blocks, and put its inner products into those of the whole batch."""
    needed = {(value.name, piece.name) for own in step.steps for value, piece in reads(own)}
    starts = {place: columns for place, columns in backward.columns.items() if place in needed}
    like = next(columns for (_, name), columns in starts.items() if name in _pieces(step))
    pairs = named(pairs_of_blocks(like, step.samples // 2), "pairs")
    totals = _totals(backward, step, like)
    keys = {f"{closing.kind} {closing.stream} {group}": (group, closing) for group, closing in totals}

    def body(part: Part) -> None:
        samples = named(part["pairs"].flatten(), "samples")

        def of_pair(tensor: Any, batched: bool = True) -> Any:
            if isinstance(tensor, list | tuple):
                return [of_pair(item, batched) for item in tensor]
            whole = part.outer(tensor)
            return whole.index_select(0, samples) if batched and whole is not tensor else whole

        ops = {name: op.bound_again(of_pair) for name, op in backward.ops.items()}
        columns = {place: of_pair(whole) for place, whole in starts.items()}
        inside = backward.inside(part.writer, ops, part.outer, columns=columns, batch=samples.shape[0],
                                 keys=of_pair)
        for own in step.steps:
            with part.writer.block(*backward.heading(place_of(own, backward.matched.graph))):
                inside.carry_out(own)
        for name, (group, closing) in keys.items():
            found = inside.totals[group][closing]
            put_pairs_(part.totals[name], mirror_(found) if closing.kind == GRAM else found, samples)

    found = backward.writer.loop(body, op=None, sliced={"pairs": pairs}, chunk=1, letter="pair",
                                 totals={name: totals[place] for name, place in keys.items()})
    for name, (group, closing) in keys.items():
        backward.totals.setdefault(group, {})[closing] = found[name]


def _pieces(step: SamplePairs) -> set[str]:
    """The names of those whose inner products are taken."""
    return {own.piece.name for own in step.steps if isinstance(own, Close | Tied) and own.piece is not None}


def _totals(backward: Backward, step: SamplePairs, like: Any) -> Mapping[Place, Any]:
    """The matrices of the whole batch, still to be filled."""
    found: dict[Place, Any] = {}
    for own in step.steps:
        if not isinstance(own, Close | Tied) or own.piece is None:
            continue
        group, rows = backward.plan.chosen.group_of(own.parameter.key) or "", backward.batch * own.piece.columns
        for kind in sorted(own.kinds):
            shape = (rows, backward.batch) if kind == CROSS else (rows, rows)
            closing = Closing(own.piece.stream, kind)
            if (group, closing) not in found:
                found[group, closing] = named(like.new_empty(shape), f"{group}_{kind}_{closing.stream}")
    return found
