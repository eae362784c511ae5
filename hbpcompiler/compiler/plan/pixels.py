"""Whether images had better lie in memory pixel by pixel."""

from __future__ import annotations

from hbpcompiler.compiler.plan.steps import Close, Piece, Plan
from hbpcompiler.compiler.routes.site import COLUMNS, DIAGONAL_FORM
from hbpcompiler.compiler.trace.graph import Graph

IMAGES = ("aten.conv2d", "aten.conv_transpose2d")
"""The operations whose weights these are."""


MAX_POOLING = "max_pool"
"""In the names of operations that scatter columns to where the maxima were, channel by channel."""


def is_pixel_by_pixel(graph: Graph, planned: Plan) -> bool:
    """Whether images had better lie so in a program, in float32 on a CPU."""
    if not any(operation.target.startswith(IMAGES) for operation in graph.operations):
        return False
    wide = [(step, piece) for step in planned.flat() if _is_wide(piece := getattr(step, "piece", None))]
    if any(piece is not None and piece.signed for _, piece in wide) or (
            wide and any(MAX_POOLING in operation.target for operation in graph.operations)):
        return False
    closes = [step for step, _ in wide if isinstance(step, Close) and step.site.has_operand and step.site.has_positions]
    return all(choice.route.reads_pixels for close in closes for choice in close.choices)


def _is_wide(piece: Piece | None) -> bool:
    """Whether several columns travel, or a matrix."""
    return piece is not None and piece.form != DIAGONAL_FORM and (piece.form != COLUMNS or piece.columns > 1)
