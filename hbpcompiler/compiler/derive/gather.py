"""Pieces of one form at a value become one."""

from __future__ import annotations

from typing import Any

import torch

from hbpcompiler.compiler.derive.backward import Backward
from hbpcompiler.compiler.derive.compression import compressed
from hbpcompiler.compiler.plan.steps import AddUp, Gather, Unite
from hbpcompiler.compiler.program.writer import named
from hbpcompiler.compiler.routes import COLUMNS
from hbpcompiler.quantities import COLUMN_WEIGHTS


def gather(backward: Backward, step: Gather) -> None:
    """Columns are laid side by side and perhaps compressed, diagonals and matrices added."""
    if not step.pieces:  # the loss has no curvature
        nothing = torch.zeros_like(backward.ops[step.value.name].output)
        backward.arrive(step.value, step.into, nothing)
        return
    parts = [backward.columns[step.value.name, piece.name] for piece in step.pieces]
    if step.into.form == COLUMNS:
        backward.arrive(step.value, step.into, _side_by_side(backward, step, parts))
        return
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    backward.arrive(step.value, step.into, whole)


def unite(backward: Backward, step: Unite) -> None:
    """All that a stream has at one of the model's outputs, as columns side by side; zeros for what has not arrived."""
    shape, like = step.value.sample_shape, backward.ops[step.value.name].output
    parts = []
    for piece, count in step.parts:
        if piece is None:
            parts.append(like.new_zeros((backward.batch, count, *shape)))
            continue
        arrived = backward.columns[step.value.name, piece.name]
        if piece.form != COLUMNS:
            arrived = torch.diag_embed(arrived.sqrt().reshape(-1, count)).reshape(-1, count, *shape)
        parts.append(arrived)
    backward.arrive(step.value, step.into, torch.cat(parts, 1) if len(parts) > 1 else parts[0])


def add_up(backward: Backward, step: AddUp) -> None:
    """Sums of the columns of each sample, with the weights that a call gives for the group."""
    weights = backward.arguments[COLUMN_WEIGHTS][step.into.group]
    (whole,) = [backward.columns[step.value.name, piece.name] for piece in step.pieces]
    letters = "abcdeghijlmopqrstuvwxyz"[: len(step.value.sample_shape)]
    summed = torch.einsum(f"nk{letters},nkf->nf{letters}", whole, weights)
    backward.arrive(step.value, step.into, summed)


def _side_by_side(backward: Backward, step: Gather, parts: list[Any]) -> Any:
    name, place = step.into.name, backward.matched.names[step.value.name]
    if step.into.signed:
        signs = [backward.signs[piece.name] if piece.signed else part.new_ones(part.shape[:2])
                 for piece, part in zip(step.pieces, parts, strict=True)]
        joined = torch.cat(signs, 1) if len(signs) > 1 else signs[0]
        backward.signs[name] = named(joined, f"sign_{place}")
    whole = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
    if step.compresses:
        whole, known = (backward.precision.widened(tensor, step.value.dtype)
                        for tensor in (whole, backward.signs.get(name)))
        whole, fewer = compressed(whole, known, step.value.sample_shape)
        if step.into.signed:
            backward.signs[name] = named(fewer, f"sign_{place}_compressed")
    return whole
