"""Tied parameters: the uses of one parameter are one contraction, laid end to end along the positions.

Sums over samples, per-sample gradients and the factor A add up over the uses. Whatever squares a cotangent needs the
uses together: their columns and operands are joined along p, and the usual routes close the joined contraction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hbpcompiler.compiler.match.parameters.tied_values import ADDITIVE, KRONECKER, _places
from hbpcompiler.compiler.plan.steps import Close, Step, Tied
from hbpcompiler.compiler.routes import COLUMNS, Site, choose
from hbpcompiler.errors import UnsupportedOpError, UsesNotJoinedError, listing
from hbpcompiler.quantities import (
    REDUCED_INPUT_FACTOR,
    Closing,
    closings_of,
)

ADVICE = ("Give each use its own parameter, freeze it (requires_grad=False), ask for other quantities, or choose "
          "parameters without it, quantities={'kfac': ['layer1.*']}.")


def join_uses(steps: Sequence[Step], closings: frozenset[Closing]) -> list[Step]:
    """The steps with the closings of each tied parameter joined.

    Where that is impossible UsesNotJoinedError names the parameters that can be values instead; UnsupportedOpError says
    so of Kronecker factors, which need the contractions.
    """
    uses: dict[str, dict[tuple[str, str], list[Close]]] = {}
    for step in steps:
        if isinstance(step, Close):
            uses.setdefault(step.parameter.key, {}).setdefault((step.operation.name, step.slot), []).append(step)
    tied = {key: places for key, places in uses.items() if len(places) > 1}
    refusals = {key: _refusals(key, places, closings) for key, places in tied.items()}
    if findings := [finding for refused in refusals.values() for finding in refused]:
        message = listing("Tied parameters:", findings, ADVICE)
        asked = {closing.kind for key, refused in refusals.items() if refused for closing in closings_of(closings, key)}
        if asked & KRONECKER:
            raise UnsupportedOpError(message)
        raise UsesNotJoinedError(message, [key for key, refused in refusals.items() if refused])
    result: list[Step] = list(steps)
    for places in tied.values():
        for name in {close.piece.name for closes in places.values() for close in closes if close.piece is not None}:
            group = [close for closes in places.values() for close in closes
                     if close.piece is not None and close.piece.name == name]
            result = _joined(result, group)
    return result


def _refusals(key: str, places: dict[tuple[str, str], list[Close]], closings: frozenset[Closing]) -> list[str]:
    first = next(iter(places.values()))[0]
    where = _places([closes[0].operation for closes in places.values()])
    what = f"parameter '{key}' is used {len(places)} times ({where})"
    if any(closing.kind == REDUCED_INPUT_FACTOR for closing in closings_of(closings, key)):
        return [f"{what}: the reduced factors of several uses are not defined; ask for kfac, kflr or kfac_emp"]
    pieces = [{close.piece.name for close in closes if close.piece is not None} for closes in places.values()]
    if any(names != pieces[0] for names in pieces):
        return [f"{what}: its curvature arrives in different forms at the uses, which cannot be joined yet"]
    squared = [close for closes in places.values() for close in closes if _squaring(close)]
    if any(close.piece is None or close.piece.form != COLUMNS for close in squared):
        return [f"{what}: only columns can be joined, and its curvature is none here (kfra, or a diagonal Hessian)"]
    if any(layout_of(close.site) != layout_of(first.site) for close in squared):
        return [f"{what}: the uses meet it in different ways, so their contractions cannot be joined: what "
                "an embedding and a linear layer share has no common Kronecker factors"]
    return []


def _squaring(close: Close) -> frozenset[str]:
    return close.kinds - ADDITIVE


def layout_of(site: Site) -> tuple[object, ...]:
    """What must agree between uses: letters of both operands but for positions, and their lengths."""
    left, right, result = site.letters
    return (left.replace("p", ""), right.replace("p", ""), result, site.shape)


def _joined(steps: list[Step], group: list[Close]) -> list[Step]:
    """Additive closings stay with each use; the others move to one `Tied` step at the last use."""
    squaring = _squaring(group[0])
    if not squaring:
        return steps
    site = _joined_site(group)
    tied = Tied(group[0].parameter, tuple(group), site, choose(site, squaring))
    additive = group[0].kinds & ADDITIVE
    result: list[Step] = []
    for step in steps:
        own = next((close for close in group if close is step), None)
        if own is None:
            result.append(step)
        elif additive:
            result.append(replace(own, choices=choose(own.site, additive)))
        if own is group[-1]:
            result.append(tied)
    return result


def _joined_site(group: Sequence[Close]) -> Site:
    _, right, result = group[0].site.letters
    own = group[0].site.own
    met = "".join(letter for letter in right if letter not in "np")
    positions = sum(close.site.size("p") if close.site.has_positions else 1 for close in group)
    sizes = dict(group[0].site.sizes) | {"p": positions}
    equation = f"nkp{own},np{met}->{result}" if right else f"nkp{own}->{result}"
    return group[0].site.without_kernels(equation=equation, sizes=tuple(sorted(sizes.items())))
