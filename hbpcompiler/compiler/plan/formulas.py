"""The formula of a block: what the steps of one operation compute, in the letters of its contractions.

n sample, k column, p position, i input, o output feature. S stands for whichever columns arrive (g for the gradient),
U for what the parameter meets, T for the parameter's cotangent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.match.operation.bind import static_op
from hbpcompiler.compiler.plan.pieces import BEFORE_MEAN, PREFIX, Piece
from hbpcompiler.compiler.plan.steps import (
    Birth,
    Close,
    Pull,
    SampleChunks,
    Seed,
    Step,
    SumEach,
    Tail,
    Tied,
    Weigh,
    Weights,
    Widen,
    flat,
)
from hbpcompiler.compiler.routes import COLUMNS, DIAGONAL_FORM, MATRIX, Site
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.quantities import (
    ALONG,
    BATCH_DIAGONAL,
    CLIPPED,
    COLUMN_SUM,
    CROSS,
    DIAGONAL,
    DOT,
    EACH,
    EIGEN,
    FACTOR,
    GGN,
    GGN_MC,
    GRADIENT,
    GRAM,
    HISTOGRAM,
    HISTOGRAM_2D,
    IN_BASES,
    INPUT_FACTOR,
    KFRA,
    NEGATIVE,
    NORM,
    POSITIVE,
    PROJECT,
    SUM,
)
from hbpcompiler.rule import LossRule, Op, Rule

CLOSINGS: Mapping[str, str] = {
    SUM: "sum_n T", EACH: "T", NORM: "sum_{theta} T^2", ALONG: "T[n] sum_m T[m]",
    HISTOGRAM: "counts of T", HISTOGRAM_2D: "counts of T by theta", DOT: "T[n] T[m]", GRAM: "T[nk] T[mj]",
    CROSS: "T[nk] g[m]", PROJECT: "T[nk] d[f]", COLUMN_SUM: "sum_{nk} w[nk] T", DIAGONAL: "sum_{nk} T^2",
    POSITIVE: "sum_{nk} T^2 where +", NEGATIVE: "sum_{nk} T^2 where -", BATCH_DIAGONAL: "sum_k T^2",
    IN_BASES: "sum_{nk} (Q_B^T T Q_A)^2",
}
"""What is made of T; in this order."""
WHOLE = "B = sum T T^T"
EIGENBASIS = "Q_B and eigenvalues of sum T T^T"
SECOND = "second phase: sum_n clip[n] T"
"""Of what is weighed once the norms are known."""
LOSS = "g = {}grad l_n"
"""With what the loss multiplies it by."""
UNITS: Mapping[Any, str] = {1.0: "", -1.0: "-"}
MULTIPLE = "v: what the loss multiplies this l_n by"
BORN = ";  residual: "
"""Divides a rule's formula."""
LOCAL = "d S,  d = y'(x)"
ELEMENTWISE = f"{LOCAL}{BORN}R = g dd,  dd = y''(x)"
"""That of a rule with a local derivative."""
WIDENED = "diagonals to columns: sqrt|R_k| J^T e_k"
"""What a `Widen` makes of each coordinate of a diagonal."""
MATRICES = "G back: likewise on both sides, averaged over n"
"""Of KFRA's recursion."""
HESSIAN = "{}Hessian of l_n in {}"
AVERAGED = "B = G (kfra)"
"""Of a matrix that was averaged over the samples where the model ends."""


@dataclass(frozen=True)
class Formulas:
    """What is computed under an operation's heading."""

    outside: str = ""
    """Of loops through several operations; where all is done in these, the whole."""
    in_loops: str = ""


def formulas(steps: Iterable[Step], matched: Matched) -> dict[str, Formulas]:
    """The formulas of each operation that has some, by its name."""
    outside: dict[str, list[Step]] = {}
    in_loops: dict[str, list[Step]] = {}
    for step in steps:
        own = in_loops if isinstance(step, Tail | SampleChunks) else outside
        for part in flat(step):
            operation = getattr(part, "operation", None)
            if operation is not None and not is_second(part):
                own.setdefault(operation.name, []).append(part)
                if isinstance(step, Tail) and isinstance(part, Widen):  # its loop stands under this heading
                    outside.setdefault(operation.name, []).append(part)
    found = {}
    for name in [*outside, *in_loops]:
        inner = _formula(in_loops.get(name, ()), matched)
        found[name] = Formulas(_formula(outside.get(name, ()), matched) or inner, inner)
    return {name: texts for name, texts in found.items() if texts != Formulas()}


def is_second(step: Step) -> bool:
    """Whether it is part of a second phase."""
    piece = getattr(step, "piece", None)
    return isinstance(step, Weights | Weigh | SumEach) or (piece is not None and piece.stream == CLIPPED)


def _formula(steps: Sequence[Step], matched: Matched) -> str:
    seeds = [step for step in steps if isinstance(step, Seed)]
    if seeds:
        return ";  ".join(_sent_off(seeds, matched))
    operation = next((step.operation for step in steps if hasattr(step, "operation")), None)
    rule = None if operation is None else matched.rules.get(operation.name)
    found: list[str] = []
    if operation is not None and isinstance(rule, Rule):
        found += _crossing(steps, rule, static_op(operation, matched.graph.active))
    slots: dict[str, list[Close | Tied]] = {}
    for step in steps:
        if isinstance(step, Close | Tied):
            slots.setdefault(step.parameter.key.rpartition(".")[2], []).append(step)
    said: list[_Ends] = []
    for name, closes in slots.items():
        ends = _ends(closes)
        if ends.formulas:
            found.append(f"{name}: {ends.text(said)}")
        said.append(ends)
    return ";  ".join(found)


def _sent_off(seeds: Sequence[Seed], matched: Matched) -> Iterator[str]:
    """What an end of the loss is, and what begins there."""
    operation = seeds[0].operation
    rule, multiple = matched.rules[operation.name], matched.ending.multiples[operation.name]
    assert isinstance(rule, LossRule)
    if written := rule.formula_of(static_op(operation, matched.graph.active)):
        yield f"l_n: {written}"
    is_known = not getattr(multiple, "free_symbols", set()) - {N}
    times = UNITS.get(multiple, f"{_shown(multiple)} ") if is_known else "v "
    if any(step.piece.stream == GRADIENT for step in seeds):
        yield LOSS.format(times)
    signed = times.startswith(("-", "v"))
    roots = list(_roots([step.piece for step in seeds if step.piece.stream != GRADIENT], signed))
    if roots:
        is_output = operation.tensors[rule.input].name in {output.name for output in matched.graph.outputs}
        yield " = ".join([*roots, HESSIAN.format(times, "the model's output" if is_output else "x")])
    if not is_known:
        yield MULTIPLE


def _shown(multiple: Any) -> str:
    return f"{multiple:g}" if isinstance(multiple, float) else str(multiple)


def _roots(pieces: Sequence[Piece], signed: bool) -> Iterator[str]:
    """What the loss's Hessian is, in the letters of what it sends off; of columns that it draws, on average. `signed`
    columns count minus where the loss subtracts."""
    exact = {piece.form for piece in pieces if piece.stream == GGN}
    for piece in pieces:
        drawn = piece.stream == GGN_MC and piece.form == COLUMNS
        if piece.stream == GGN or drawn or piece.form not in exact:  # otherwise they are the same numbers, written once
            letter = BEFORE_MEAN if piece.stream == KFRA else PREFIX[piece.stream]
            columns = f"sum_k {'sign ' * signed}{letter} {letter}^T"
            yield "E " * drawn + (columns if piece.form == COLUMNS else f"diag({letter})")


def _crossing(steps: Sequence[Step], rule: Rule, op: Op) -> Iterator[str]:
    """What columns become at the operation's inputs, and what is born there."""
    pulled = [step for step in steps if isinstance(step, Pull | Widen)]
    written = rule.formula_of(op) or (ELEMENTWISE if rule.derivative is not None else "")
    back, _, born = written.partition(BORN)
    if pulled and back:
        yield f"columns back: {back}"
        if any(step.piece.form == DIAGONAL_FORM for step in pulled if isinstance(step, Pull)):
            yield "diagonals back: d^2 R" if back.startswith(LOCAL) else "diagonals back: likewise, factors squared"
        if any(step.piece.form == MATRIX for step in pulled):
            yield MATRICES
    if any(isinstance(step, Widen) for step in pulled):
        yield WIDENED
    if born and any(isinstance(step, Birth) for step in steps):
        yield f"residual: {born}"


@dataclass(frozen=True)
class _Ends:
    """What is made at a parameter."""

    cotangent: str
    """Of the columns and the operand: "S[nko] U[ni]"."""
    of_cotangent: tuple[str, ...]
    """Formulas in T alone."""
    factors: tuple[str, ...]

    @property
    def formulas(self) -> tuple[str, ...]:
        """All of them; T stands for itself where it is wanted."""
        return self.of_cotangent + self.factors

    def text(self, said: Sequence[_Ends]) -> str:
        """In words, shorter where the same is made of another parameter's T."""
        whole = f"T = {self.cotangent}"
        for other in said:
            if self.of_cotangent and self.of_cotangent == other.of_cotangent and self._has_factor == other._has_factor:
                own = [factor for factor in self.factors if factor not in other.factors]
                return ", ".join([f"likewise, {whole}", *own])
        has_cotangent = bool(self.of_cotangent) or any(factor in self.factors for factor in (WHOLE, EIGENBASIS))
        return ", ".join([whole] * has_cotangent + [text for text in self.formulas if text != "T"])

    @property
    def _has_factor(self) -> bool:
        return any(factor.startswith("B =") for factor in self.factors)


def _ends(closes: Sequence[Close | Tied]) -> _Ends:
    kinds = {kind for close in closes for kind in close.kinds}
    site = _site(closes)
    factors = []
    forms = {close.site.form for close in closes if FACTOR in close.kinds}
    if forms - {MATRIX}:  # without input features B is the whole block
        factors.append("B = sum S S^T" + " / P" * site.has_positions if site.features else WHOLE)
    factors += [AVERAGED] * (MATRIX in forms)
    if INPUT_FACTOR in kinds:
        factors.append("A = sum U U^T")
    if EIGEN in kinds and site.features:
        kinds.add(IN_BASES)
        factors += ["Q_B eigenvectors of sum S S^T", "Q_A of sum U U^T"]
    elif EIGEN in kinds:
        factors.append(EIGENBASIS)
    made = tuple(text for kind, text in CLOSINGS.items() if kind in kinds)
    return _Ends(_cotangent(site), made, tuple(factors))


def _site(closes: Sequence[Close | Tied]) -> Site:
    """Where columns end: at all positions, if some do, and not at pooled ones."""
    with_columns = [close for close in closes if close.piece is not None]
    whole = [close for close in with_columns if isinstance(close, Tied) or not close.pooled]
    return [*whole, *with_columns, *closes][0].site


def _cotangent(site: Site) -> str:
    left, right, result = site.letters
    summed = "".join(letter for letter in left if letter not in result)
    operand = f" U[{right}]" if right else ""
    return f"sum_{summed} S[{left}]{operand}" if summed else f"S[{left}]{operand}"
