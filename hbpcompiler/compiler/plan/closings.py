"""Where pieces end: for each parameter of an operation, the contraction's site and the routes that close it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.match.parameters.parameter_values import EACH_SAMPLE
from hbpcompiler.compiler.plan.joint import OF_OPERAND, Joint, site_with_one, with_one
from hbpcompiler.compiler.plan.precision import Precision
from hbpcompiler.compiler.plan.steps import (
    Close,
    Piece,
    Tied,
)
from hbpcompiler.compiler.routes import (
    DIAGONAL_FORM,
    NOTHING,
    Site,
    choose,
)
from hbpcompiler.compiler.routes.kept import stays_diagonal
from hbpcompiler.compiler.routes.rows import rows_of
from hbpcompiler.compiler.trace.graph import SAMPLES, Operation, Value
from hbpcompiler.errors import UnsupportedOpError
from hbpcompiler.limits import Limits
from hbpcompiler.quantities import (
    BLOCK,
    CROSS,
    EIGEN,
    FACTOR,
    GRADIENT,
    IN_BASES,
    NEGATIVE,
    QUANTITIES,
    REDUCED_FACTOR,
    TOTALS,
    VECTORS,
    Chosen,
    Closing,
    closings_of,
)
from hbpcompiler.rule import Contraction, Op, Rule, Window

SIGNED = ": the curvature of this loss is not known to be positive"
"""In the error of columns that are asked for and may have no real square root; what asks for them is before it."""
WHOLE_BLOCKS = frozenset({EIGEN, FACTOR, IN_BASES, REDUCED_FACTOR})
"""Closings that have the full block of a parameter without input features, or its eigenvectors."""
NONE, ALL_CHOSEN = Joint(), Chosen()


def closings_at(operation: Operation, rule: Rule, op: Op, pieces: Sequence[Piece], wanted: Collection[Closing],
                dtype: torch.dtype, resources: Resources, precision: Precision, joint: Joint = NONE,
                chosen: Chosen = ALL_CHOSEN) -> Iterator[Close]:
    """The steps that end the pieces at an operation's result, and its operand, at the operation's parameters.

    A weight that shares its Kronecker block with its bias closes some of it as a contraction of its own (see `joint`).
    """
    params = rule.params(op)
    for slot, parameter in operation.tensors.items():
        if not parameter.trainable or slot not in params:
            continue
        contraction, asked = params[slot], closings_of(wanted, parameter.key)
        _check_rows(operation, parameter, contraction, {closing.kind for closing in asked})
        alone = site_of(contraction, op, None, precision.of(None, dtype), resources, rule.window(op))
        for piece in pieces:
            kinds = frozenset(closing.kind for closing in asked if closing.stream == piece.stream)
            kinds = joint.own(parameter.key, kinds - (frozenset() if piece.signed else {NEGATIVE}))
            if not kinds or not piece.concerns(parameter) or (
                    piece.group and chosen.group_of(parameter.key) != piece.group):
                continue
            _check(operation, parameter, contraction, piece, pieces, kinds, resources.limits.full_block_rows)
            gradient = next((other for other in pieces if other.stream == GRADIENT), None)
            site = _met(alone, piece, precision.of(piece, dtype))
            if BLOCK in kinds and piece.form == DIAGONAL_FORM:
                site = replace(site, apart=stays_diagonal(contraction, op))
            other = gradient if CROSS in kinds else None
            with_bias = kinds & OF_OPERAND if parameter.key in joint.biases else frozenset()
            if kinds - with_bias:
                yield Close(operation, slot, parameter, piece, site, contraction, choose(site, kinds - with_bias),
                            other=other)
            if with_bias:
                yield _close_with_one(operation, slot, parameter, piece, site, contraction, with_bias)
        of_operand = frozenset(closing.kind for closing in asked if not closing.stream)
        if of_operand and alone.features and parameter.key in joint.biases:
            yield _close_with_one(operation, slot, parameter, None, alone, contraction, of_operand)
        elif of_operand and alone.features:
            yield Close(operation, slot, parameter, None, alone, contraction, choose(alone, of_operand))


def _close_with_one(operation: Operation, slot: str, parameter: Value, piece: Piece | None, site: Site,
                    contraction: Contraction, kinds: frozenset[str]) -> Close:
    own = site_with_one(site)
    return Close(operation, slot, parameter, piece, own, with_one(contraction), choose(own, kinds))


def site_of(contraction: Contraction, op: Op, piece: Piece | None, dtype: torch.dtype, resources: Resources,
            window: Window | None = None) -> Site:
    """What routes see of a contraction that a piece meets (None: the operand alone), at an operation with a window."""
    left, right, _ = contraction.letters
    columns = torch.empty((SAMPLES, 1, *op.shape("output")), dtype=dtype, device="meta")
    sizes = dict(zip(left, contraction.columns(op, columns).shape, strict=True))
    if contraction.operand is not None:
        sizes |= dict(zip(right, contraction.operand(op).shape, strict=True))
    # A view has as many numbers as what it shows.
    formed = bool(right) and math.prod(sizes[letter] for letter in right if letter != "n") not in map(
        math.prod, op.shapes())
    lengths = tuple(sorted((letter, int(length)) for letter, length in sizes.items() if letter not in "nk"))
    form, count, signed = (piece.form, piece.columns, piece.signed) if piece else (NOTHING, 0, False)
    return Site(contraction.equation, lengths, form, count, signed, dtype.itemsize, contraction.kernel is not None,
                resources, _has_kernel_for_columns(contraction, op, window, resources.limits), formed,
                rows=rows_of(window, contraction, op), indexed=contraction.index is not None,
                own_product=contraction.product is not None)


def _met(site: Site, piece: Piece, dtype: torch.dtype) -> Site:
    """The site of the operand alone, when a piece of this dtype meets it."""
    return replace(site, form=piece.form, columns=piece.columns, signed=piece.signed, itemsize=dtype.itemsize)


def _has_kernel_for_columns(contraction: Contraction, op: Op, window: Window | None, limits: Limits) -> bool:
    """Whether torch's CPU kernel for one sample beats patches times columns: where it is oneDNN's."""
    if window is None or not contraction.has_kernel_for_columns:
        return False
    largest = max(math.prod(op.shape(slot)) for slot in op.sampled())
    long = len(window.size) > 1 and min(window.size[-2:]) > limits.native_kernel_length
    return decided("kernel for columns", lambda: largest > limits.native_image_numbers or long)


def _check_rows(operation: Operation, parameter: Value, contraction: Contraction, kinds: Collection[str]) -> None:
    """UnsupportedOpError where A would count the indices of rows that a mask does not pick."""
    if operation.source.picked and contraction.index is not None and OF_OPERAND.intersection(kinds):
        raise UnsupportedOpError(f"parameter '{parameter.key}' is a table for rows that a mask picks, in "
                                 f"{operation.source}: it has no Kronecker factors; pick what the table gives, "
                                 "embedding(ids)[mask], give it a padding_idx, or ask for other quantities of it")


def _check(operation: Operation, parameter: Value, contraction: Contraction, piece: Piece, pieces: Iterable[Piece],
           kinds: frozenset[str], full_block_rows: int) -> None:
    """UnsupportedOpError for what cannot be had of this piece here.

    Parameters without input features, as biases are, have a full block for a Kronecker factor: of so many rows at most.
    """
    if VECTORS in kinds and piece.signed:
        raise UnsupportedOpError(signed_columns(_quantities_of(Closing(piece.stream, VECTORS))))
    if TOTALS & kinds and operation.source.in_loss:
        raise UnsupportedOpError(f"parameter '{parameter.key}' meets the loss in {operation.source}, where columns "
                                 f"are not united yet: {', '.join(sorted(TOTALS & kinds))} needs groups without it")
    if EIGEN in kinds and sum(other.stream == piece.stream for other in pieces) > 1:
        names = ", ".join(_quantities_of(Closing(piece.stream, EIGEN)))
        raise UnsupportedOpError(f"{names}: the sampled curvature reaches parameter '{parameter.key}' in several "
                                 "pieces, whose eigenvectors differ; ask for kfac")
    size = math.prod(parameter.sample_shape)
    if contraction.operand is None and size > full_block_rows and WHOLE_BLOCKS & kinds:
        raise UnsupportedOpError(
            f"parameter '{parameter.key}' in {operation.source} {without_features(operation)}: its Kronecker factor "
            f"would be its full block of {size} x {size} numbers; choose other parameters, as in "
            "quantities={'kfac': ['layer1.*', 'head.weight'], 'grad': '*'}, freeze it (requires_grad=False) or ask for "
            "other quantities")


def without_features(operation: Operation) -> str:
    """Why a parameter there has no factor A."""
    if operation.target in EACH_SAMPLE.operations:
        return ("is computed with before a layer meets it (weight norm, a low-rank update, a cast: torch.autocast "
                "casts weights, so call outside of it)")
    return "meets no input features"


def _quantities_of(closing: Closing) -> list[str]:
    """The names of those that need it."""
    return [name for name, quantity in QUANTITIES.items() if closing in quantity.needs]


def signed_columns(names: Sequence[str]) -> str:
    """Why what needs real columns cannot be had of signed ones."""
    return (f"{', '.join(names)}{SIGNED}, so it may have no real square root; use a loss function that has a rule, "
            "without negative weights, as nn.BCEWithLogitsLoss() in place of logarithms of sigmoids")


def shape_of_total(close: Close | Tied, kind: str) -> tuple[int, ...]:
    """The shape of a closing before it takes its parameter's."""
    site = close.site
    if kind == IN_BASES:
        return shape_in_bases(site)
    if kind not in (FACTOR, REDUCED_FACTOR):
        return close.parameter.sample_shape
    if not site.features:
        return (site.size(site.theta), site.size(site.theta))
    return (*[site.size(letter) for letter in site.shared], site.size(site.outer), site.size(site.outer))


def shape_in_bases(site: Site) -> tuple[int, ...]:
    """[*shared, outputs, inputs], or [n] of a whole block."""
    if not site.features:
        return (site.size(site.theta),)
    return (*[site.size(letter) for letter in site.shared], site.size(site.outer), site.size(site.features))


def bases_of(site: Site) -> dict[str, tuple[int, ...]]:
    """The shapes of the bases that cotangents are seen in there: "A" of the input features, if it has some, and "B"."""
    *shared, outputs, inputs = shape_in_bases(site) if site.features else (*shape_in_bases(site), 0)
    found = {"A": (*shared, inputs, inputs)} if site.features else {}
    return {**found, "B": (*shared, outputs, outputs)}
