"""verify="full": the quantities beyond the gradient against autograd; else exact Hessians that rounding may spoil.

Per-sample ones are compared whole, diagonals of curvature at their largest entry and at others drawn at random, by
double backward. Exact twins stand in for what is sampled, brute force for Kronecker factors that are small.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch

from hbpcompiler.compiler.prove import clipped, groups
from hbpcompiler.compiler.prove.by_autograd import GGNS, HESSIANS, LOSSES, Reference
from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.comparison import DOUBLE, FEW_DIGITS, Comparison, compared, left_out
from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.prove.eigen import eigen_lines
from hbpcompiler.compiler.prove.factors import factor_lines
from hbpcompiler.compiler.prove.groups import group_lines
from hbpcompiler.compiler.prove.jacobian import JACOBIAN
from hbpcompiler.compiler.prove.noise import Noise
from hbpcompiler.compiler.prove.twin import GRAD, TWINS, twin_program
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import HbpError
from hbpcompiler.quantities import BATCH, QUANTITIES

SINGLE = torch.finfo(torch.float32).eps
SIX_DIGITS = 1e-6
"""What cancels may cost others: six digits are what curvature is used with."""
EXACT_HESSIANS = frozenset({*HESSIANS, "trace_h"})
"""Exact ones, of which entries are cheap to have otherwise."""
EXACT_CURVATURE = EXACT_HESSIANS | {*GGNS, "trace_ggn"}
"""With those of the GGN."""
CANCELS = ("Two values are multiplied whose derivatives differ by orders of magnitude. Of such a product the Hessian "
           "is a difference of squares, (u + v)^2 - (u - v)^2, of which rounding leaves nothing: bring the values to "
           "one scale, compute in double precision, or use hbp.operator(..., \"hessian\"), whose products are torch's.")


def second_order(candidate: Candidate, batch: Batch, draws: Draws, eps: float, random: bool,
                 only: Collection[str] | None = None, raw: Any = None) -> list[Comparison]:
    """Lines for every quantity that was asked for, but grad, or for those in `only`; `random`: whether the model draws;
    `raw`: what the program returned for the batch with these draws, if it was run."""
    if raw is None:
        with drawing(draws):
            raw = candidate.run(batch)
    asked = [name for name in candidate.options.quantities if name not in (GRAD, JACOBIAN)]  # those are proven always
    asked = [name for name in asked if only is None or name in only]
    apart = (*clipped.NAMES, *groups.NAMES)
    values: dict[str, Mapping[str, Any]] = {
        name: getattr(raw, name) for name in asked if QUANTITIES[name].per != BATCH and name not in apart}
    how = _with_twins(candidate, batch, draws, values)
    if candidate.options.curvature_dtype is not None:
        eps = max(eps, torch.finfo(candidate.options.curvature_dtype).eps)
    reference = Reference(candidate, batch, draws, values, raw.batch_loss if LOSSES in asked else None,
                           clipped.clipped_of(raw, candidate))
    try:
        right = reference()
        reference.like(right)
        loss = float(raw.loss.detach().abs())
        digits = FEW_DIGITS if eps <= DOUBLE else 1
        last_digit = digits * eps * loss if math.isfinite(loss) else 0.0
        lines = compared(reference.found, right, eps, lambda run: reference(Noise(eps, run)), of_zero=last_digit)
        lines = [line if line.agrees else reference.by_differences(line, right[line.key]) for line in lines]
        lines = reference.without_gradient(lines)
        if eps == SINGLE and not random:
            lines, eps = reference.in_double(lines, right, eps)
        lines = reference.last_digits_allowed(lines, eps)
        if only is not None:
            lines = [replace(line, allowed=max(line.allowed, SIX_DIGITS * line.largest)) for line in lines]
    except (RuntimeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [""])[0][:150]
        lines = [left_out(*key, f"autograd itself fails: {reason}") for key in reference.found]
    lines = [replace(line, how=line.how or how.get(line.quantity) or reference.how(line)) if line.compared else line
             for line in lines]
    if only is not None:
        return lines
    lines += factor_lines(candidate, batch, values, eps, random)
    lines += eigen_lines(candidate, batch, draws, values, eps)
    lines += group_lines(candidate, batch, draws, eps)
    known = {line.quantity.partition(".")[0] for line in lines}
    return [*lines, *(left_out(name, "", how.get(name) or reference.refused.get(name, "nothing to compare it with"))
                      for name in asked if name not in known)]


def in_doubt(candidate: Candidate) -> frozenset[str]:
    """The quantities whose entries are compared in any case: those that may cancel, and, where rules are not ours, all
    that a wrong second derivative would spoil."""
    if candidate.options.registry.has_rules_of_others:
        return EXACT_CURVATURE.intersection(candidate.options.quantities)
    return EXACT_HESSIANS.intersection(candidate.options.quantities) if candidate.may_cancel else frozenset()


def _with_twins(candidate: Candidate, batch: Batch, draws: Draws, values: dict[str, Mapping[str, Any]],
                ) -> dict[str, str]:
    """Replaces sampled values by those of their exact twins; how each is compared, or why not."""
    sampled = {name: twin for name, twin in TWINS.items() if name in values}
    how = {name: f"its exact twin {twin}" for name, twin in sampled.items()}
    if not sampled:
        return {}
    for name in sampled:
        del values[name]
    try:
        twins = twin_program(candidate.matched, candidate.options, tuple(sorted(set(sampled.values()))))
    except HbpError as error:
        return {name: f"sampled, and its exact twin {twin} is refused: {error}" for name, twin in sampled.items()}
    with drawing(draws):
        results = twins(candidate.state, *batch.tensors, **candidate.beside)
    values |= {name: results[twin] for name, twin in sampled.items()}
    return how
