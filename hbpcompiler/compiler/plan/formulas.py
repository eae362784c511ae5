"""The formula of a block: what the steps of one operation compute, in the letters of its contractions.

n sample, k column, p position, i input, o output feature. S stands for whichever columns arrive (g for the gradient),
U for what the parameter meets, T for the parameter's cotangent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hbpcompiler.compiler.plan.steps import (
    Birth,
    Close,
    Pull,
    Seed,
    Step,
    SumEach,
    Tied,
    Weigh,
    Weights,
    Widen,
    flat,
)
from hbpcompiler.compiler.routes import DIAGONAL_FORM, Site
from hbpcompiler.quantities import (
    ALONG,
    BATCH_DIAGONAL,
    COLUMN_SUM,
    CROSS,
    DIAGONAL,
    DOT,
    EACH,
    FACTOR,
    GRADIENT,
    GRAM,
    HISTOGRAM,
    HISTOGRAM_2D,
    IN_BASES,
    INPUT_FACTOR,
    NEGATIVE,
    NORM,
    POSITIVE,
    PROJECT,
    SUM,
    WEIGHTED,
)
from hbpcompiler.rule import Rule
from hbpcompiler.rule.registry import AnyRule

CLOSINGS: Mapping[str, str] = {
    SUM: "sum_n T", EACH: "T", NORM: "sum_{theta} T^2", ALONG: "T[n] sum_m T[m]",
    HISTOGRAM: "counts of T", HISTOGRAM_2D: "counts of T by theta", DOT: "T[n] T[m]", GRAM: "T[nk] T[mj]",
    CROSS: "T[nk] g[m]", PROJECT: "T[nk] d[f]", COLUMN_SUM: "sum_{nk} w[nk] T", DIAGONAL: "sum_{nk} T^2",
    POSITIVE: "sum_{nk} T^2 where +", NEGATIVE: "sum_{nk} T^2 where -", BATCH_DIAGONAL: "sum_k T^2",
    IN_BASES: "sum_{nk} (Q_B^T T Q_A)^2",
}
"""What is made of T; in this order."""
SECOND = "second phase: sum_n clip[n] T"
"""Of what is weighed once the norms are known."""
LOSS = "g = grad l_n"
ROOT = "sum_k S S^T = Hessian of l_n in the model's output"


def formulas(steps: Iterable[Step], rules: Mapping[str, AnyRule]) -> dict[str, str]:
    """The formula of each operation that has one, by its name."""
    own: dict[str, list[Step]] = {}
    for step in steps:
        for part in flat(step):
            if is_second(part):
                continue
            operation = getattr(part, "operation", None)
            if operation is not None:
                own.setdefault(operation.name, []).append(part)
    found = {name: _formula(parts, rules.get(name)) for name, parts in own.items()}
    return {name: text for name, text in found.items() if text}


def is_second(step: Step) -> bool:
    """Whether it is part of a second phase."""
    piece = getattr(step, "piece", None)
    return isinstance(step, Weights | Weigh | SumEach) or (piece is not None and piece.stream == WEIGHTED)


def _formula(steps: Sequence[Step], rule: AnyRule | None) -> str:
    seeds = [step for step in steps if isinstance(step, Seed)]
    if seeds:
        parts = [LOSS] * any(step.piece.stream == GRADIENT for step in seeds)
        return ";  ".join(parts + [ROOT] * any(step.piece.stream != GRADIENT for step in seeds))
    found = []
    pulled = [step for step in steps if isinstance(step, Pull | Widen)]
    if isinstance(rule, Rule) and rule.derivative is not None and pulled:
        found.append("d = y'(x),  columns back: d S")
        if any(step.piece.form == DIAGONAL_FORM for step in pulled if isinstance(step, Pull)):
            found.append("diagonals back: d^2 R")
        if any(isinstance(step, Birth) for step in steps):
            found.append("residual: R = g y''(x)")
    slots: dict[str, list[Close | Tied]] = {}
    for step in steps:
        if isinstance(step, Close | Tied):
            slots.setdefault(step.parameter.key.rpartition(".")[2], []).append(step)
    said: dict[str, str] = {}
    for name, closes in slots.items():
        made, cotangent = _closings(closes)
        if made and made in said.values():
            found.append(f"{name}: likewise, T = {cotangent}")
        elif made:
            found.append(f"{name}: {made.replace('T =', f'T = {cotangent}')}")
        said[name] = made
    return ";  ".join(found)


def _closings(closes: Sequence[Close | Tied]) -> tuple[str, str]:
    """What is made at a parameter, and what its cotangents T are there."""
    kinds = {kind for close in closes for kind in close.kinds}
    site = next((close.site for close in closes if close.piece is not None), closes[0].site)
    made = [text for kind, text in CLOSINGS.items() if kind in kinds]
    parts = []
    whole = FACTOR in kinds and not site.features  # without input features B is the whole block
    if made or whole:
        parts.append("T =")
        parts += [text for text in made if text != "T"]
    if FACTOR in kinds:
        parts.append("B = sum T T^T" if whole else "B = sum S S^T" + " / P" * site.has_positions)
    if INPUT_FACTOR in kinds:
        parts.append("A = sum U U^T")
    return ", ".join(parts), _cotangent(site)


def _cotangent(site: Site) -> str:
    left, right, result = site.letters
    summed = "".join(letter for letter in left if letter not in result)
    operand = f" U[{right}]" if right else ""
    return f"sum_{summed} S[{left}]{operand}" if summed else f"S[{left}]{operand}"
