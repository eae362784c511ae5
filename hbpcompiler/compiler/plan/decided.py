"""Which thresholds decided something in a plan: for `explain`."""

from __future__ import annotations

from collections.abc import Iterator

from hbpcompiler.compiler.plan.phases import AGAIN
from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.plan.steps import Close, Gather, LocalTail, SampleChunks, SamplePairs, Step, Tail, Tied

CHUNKS = {
    "vector_bytes": ("vector_bytes", "vector_chunk_bytes"),
    "spatial_bytes": ("spatial_bytes", "recycled_bytes"),
    "recycled_bytes": ("recycled_bytes", "late_chunk_bytes"),
    "neighbourhood_work": ("neighbourhood_work", "recycled_bytes"),
    "all_columns_bytes": ("all_columns_bytes", "all_columns_chunk_bytes"),
    "": (),
}
"""What sent columns into chunks -> that, and what says how large these are."""


def limits_met(plan: Plan) -> dict[str, list[str]]:
    """The names of limits, each with what followed it."""
    found: dict[str, list[str]] = {}
    if plan.second is not None and plan.second.way == AGAIN:
        found["kept_bytes"] = ["a second backward pass"]
    if plan.second is not None and plan.second.formed:
        found["formed_bytes"] = found["formed_time"] = ["per-sample gradients"]
    for step in plan.steps:
        for name, what in _met(step):
            known = found.setdefault(name, [])
            if what not in known:
                known.append(what)
    return found


def _met(step: Step) -> Iterator[tuple[str, str]]:
    if isinstance(step, Tail | SampleChunks):
        for name in CHUNKS[step.limit]:
            yield name, _chunks(step)
        for own in step.steps:
            yield from _met(own)
    elif isinstance(step, Gather) and step.compresses:
        yield "compressed_columns", "compressed columns"
        yield "compressed_growth", "compressed columns"
    elif isinstance(step, Close | Tied):
        if isinstance(step, Close) and step.pooled:
            yield "pooled_time", "closings at pooled positions"
        for choice in step.choices:
            for name in choice.route.limits_at(step.site):
                yield name, choice.route.name


def _chunks(step: Tail | SampleChunks) -> str:
    if isinstance(step, SamplePairs):
        return "inner products in pairs of blocks of samples"
    if isinstance(step, SampleChunks):
        return "all columns in chunks of samples"
    return f"{step.piece.stream} columns {'by neighbourhoods' if isinstance(step, LocalTail) else 'in chunks'}"
