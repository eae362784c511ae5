"""Tied parameters: the uses of one parameter are one contraction, laid end to end along the positions.

Sums over samples, per-sample gradients and the factor A add up over the uses. Whatever squares a cotangent needs the
uses together: their columns and operands are joined along p, and the usual routes close the joined contraction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hbpcompiler.compiler.match.parameters.tied_values import (
    ADDITIVE,
    ADVICE,
    BY_ROWS,
    KRONECKER,
    NOT_ALIKE,
    _places,
    meet_by_rows,
    never_joined,
)
from hbpcompiler.compiler.plan.steps import Close, Step, Tied, TiedRows
from hbpcompiler.compiler.routes import COLUMNS, TIED_ROWS, Site, choose
from hbpcompiler.errors import UnsupportedOpError, UsesNotJoinedError, listing
from hbpcompiler.quantities import (
    Closing,
    closings_of,
)


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
    if reason := never_joined(closings_of(closings, key)):
        return [f"{what}: {reason}"]
    pieces = [{close.piece.name for close in closes if close.piece is not None} for closes in places.values()]
    if any(names != pieces[0] for names in pieces):
        return [f"{what}: its curvature arrives in different forms at the uses, which cannot be joined yet"]
    squared = [close for closes in places.values() for close in closes if _squaring(close)]
    if any(close.piece is None or close.piece.form != COLUMNS for close in squared):
        return [f"{what}: only columns can be joined, and its curvature is none here (a diagonal Hessian)"]
    unlike = any(layout_of(close.site) != layout_of(first.site) for close in squared)
    if unlike and not _by_rows(squared):
        return [f"{what}: {NOT_ALIKE}"]
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
    looked_up = [close for close in group if close.contraction.index is not None]
    multiplied = [close for close in group if close.contraction.index is None]
    if not looked_up or not multiplied:
        site = _joined_site(group)
        return _with_step(steps, group, Tied(group[0].parameter, tuple(group), site, choose(site, squaring)))
    site = replace(_joined_site(looked_up), form=TIED_ROWS)
    site = replace(site, sizes=tuple(sorted({*site.sizes, ("q", _positions(multiplied))})))
    steps = _with_step(steps, looked_up, TiedRows(group[0].parameter, tuple(group), site, choose(site, squaring)))
    return _joined(steps, multiplied) if len(multiplied) > 1 else steps


def _with_step(steps: Sequence[Step], closed: Sequence[Close], tied: Tied) -> list[Step]:
    """With a step, behind the last of its uses, that closes these but for what is additive."""
    additive = closed[0].kinds & ADDITIVE
    result: list[Step] = []
    for step in steps:
        own = next((close for close in closed if close is step), None)
        if own is None:
            result.append(step)
        elif additive:
            result.append(replace(own, choices=choose(own.site, additive)))
        if step is tied.uses[-1]:
            result.append(tied)
    return result


def _by_rows(closes: Sequence[Close]) -> bool:
    """Whether looked-up rows meet what is multiplied (see `TiedRows`)."""
    return meet_by_rows([close.contraction for close in closes]) and all(
        _squaring(close) <= BY_ROWS and not close.pooled for close in closes)


def _joined_site(group: Sequence[Close]) -> Site:
    _, right, result = group[0].site.letters
    own = group[0].site.own
    met = "".join(letter for letter in right if letter not in "np")
    sizes = dict(group[0].site.sizes) | {"p": _positions(group)}
    equation = f"nkp{own},np{met}->{result}" if right else f"nkp{own}->{result}"
    return group[0].site.without_kernels(equation=equation, sizes=tuple(sorted(sizes.items())))


def _positions(group: Sequence[Close]) -> int:
    return sum(close.site.size("p") if close.site.has_positions else 1 for close in group)
