"""What exactness costs: how many columns travel for exact quantities, where an estimate sends few."""

from __future__ import annotations

from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.plan.steps import Birth, Gather, Piece, Pull, Seed, Widen
from hbpcompiler.quantities import QUANTITIES, SAMPLED

MANY = 100
"""Columns per sample, from which on it is said."""


def notes(plan: Plan) -> list[str]:
    """A line for each exact quantity for which many columns travel, with the name of its estimate."""
    found = []
    for name in plan.quantities:
        streams = {closing.stream for closing in QUANTITIES[name].needs}
        widest = max((piece.columns for piece in _pieces(plan) if piece.stream in streams), default=0)
        if name in SAMPLED and widest >= MANY:
            found.append(f"{name} is exact: {widest} columns a sample travel for it, each of which costs about what "
                         f"the gradient costs on its way back. {SAMPLED[name]} estimates it from mc_samples random "
                         "ones.")
    return found


def _pieces(plan: Plan) -> list[Piece]:
    """All that travel."""
    found: list[Piece] = []
    for step in plan.flat():
        if isinstance(step, Widen | Gather):
            found.append(step.into)
        elif isinstance(step, Seed | Birth | Pull):
            found.append(step.piece)
    return found
