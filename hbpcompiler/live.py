"""Steps whose result nothing reads are dropped: what was not asked for is not computed."""

from __future__ import annotations

from hbpcompiler.steps import Average, Birth, Close, Gather, Pull, Sample, Seed, Step, Tied, Widen


def live(steps: list[Step]) -> list[Step]:
    """Drop every step whose result nothing reads: what was not asked for is not computed."""
    wanted: set[tuple[str, str]] = set()
    kept: list[Step] = []
    for step in reversed(steps):
        if isinstance(step, Tied):
            wanted |= {(use.operation.name, step.piece.name) for use in step.uses}
        elif isinstance(step, Close):
            if step.piece is not None:
                wanted.add((step.operation.name, step.piece.name))
        elif isinstance(step, Seed | Birth):
            inputs = step.operation.tensors.values()
            if not any((value.name, step.piece.name) in wanted for value in inputs):
                continue
            if isinstance(step, Birth):
                wanted.add((step.operation.name, step.gradient.name))
        elif isinstance(step, Pull | Widen):
            into = step.into if isinstance(step, Widen) else step.piece
            if (step.operation.tensors[step.slot].name, into.name) not in wanted:
                continue
            wanted.add((step.operation.name, step.piece.name))
        elif isinstance(step, Gather | Average | Sample):
            if (step.value.name, step.into.name) not in wanted:
                continue
            wanted |= {(step.value.name, piece.name) for piece in step.pieces}
        kept.append(step)
    return kept[::-1]
