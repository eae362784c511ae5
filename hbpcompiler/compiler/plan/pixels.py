"""Whether images had better lie in memory pixel by pixel: what rules say of their operations, weighed with the plan."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.plan.steps import Close, Piece
from hbpcompiler.compiler.routes.site import COLUMNS, DIAGONAL_FORM
from hbpcompiler.compiler.trace.graph import Graph
from hbpcompiler.limits import DEFAULT_LIMITS, Limits
from hbpcompiler.rule import Layout, Rule
from hbpcompiler.rule.registry import AnyRule

IMAGE = 4
"""Axes of a weight of images that torch has another layout for."""


def image_weights(graph: Graph, rules: Mapping[str, AnyRule]) -> frozenset[str]:
    """Names in the state of the weights that may lie pixel by pixel."""
    state = {value.name: value.key for value in graph.state}
    return frozenset(state[value.name] for operation in graph.operations
                     if _layout(rules.get(operation.name)) is Layout.PIXELS
                     for value in operation.tensors.values() if value.name in state and len(value.shape) == IMAGE)


def weights_outweigh_images(graph: Graph, rules: Mapping[str, AnyRule], samples: int,
                           limits: Limits = DEFAULT_LIMITS) -> bool:
    """Whether it takes longer to lay out weights pixel by pixel than it takes to lay out so many samples' images.

    oneDNN has an order of its own, to which it brings either. A kernel of one pixel lies the same both ways.
    """
    weights = images = 0
    for operation in graph.operations:
        own = [value for value in operation.tensors.values() if not value.batched and len(value.shape) == IMAGE]
        kernels = [value for value in own if prod(value.shape[2:]) > 1]
        if kernels and _layout(rules.get(operation.name)) is Layout.PIXELS:
            weights += sum(prod(value.shape) for value in kernels)
            read = [value for value in operation.tensors.values() if value.batched]
            images += sum(prod(value.sample_shape) for value in (*read, operation.output))
    return limits.rearranged_images * weights > samples * images


def is_pixel_by_pixel(graph: Graph, rules: Mapping[str, AnyRule], planned: Plan, samples: int,
                      limits: Limits = DEFAULT_LIMITS) -> bool:
    """Whether images had better lie so in a program for so many samples, in float32 on a CPU."""
    layouts = {_layout(rules.get(operation.name)) for operation in graph.operations}
    if Layout.PIXELS not in layouts or Layout.GROUPS in layouts or weights_outweigh_images(
            graph, rules, samples, limits):
        return False
    wide = [(step, piece) for step in planned.flat() if _is_wide(piece := getattr(step, "piece", None))]
    if any(piece is not None and piece.signed for _, piece in wide) or (wide and Layout.CHANNELS in layouts):
        return False
    closes = [step for step, _ in wide if isinstance(step, Close) and step.site.has_operand and step.site.has_positions]
    return all(choice.route.reads_pixels for close in closes for choice in close.choices)


def _layout(rule: AnyRule | None) -> Layout | None:
    return rule.layout if isinstance(rule, Rule) else None


def _is_wide(piece: Piece | None) -> bool:
    """Whether several columns travel, or a matrix."""
    return piece is not None and piece.form != DIAGONAL_FORM and (piece.form != COLUMNS or piece.columns > 1)
