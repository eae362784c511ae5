"""An optimisation pass: images lie in memory channel by channel, or pixel by pixel (channels last).

oneDNN's convolutions and torch's pools work pixel by pixel and rearrange what lies otherwise, what they return too. If
a convolution's weight is laid out so, all that follows is. First-order quantities gain: 3C3D:64 takes 0.8 times as
long. Columns gain as much at convolutions, and lose it again in max-pooling, which scatters them channel by channel,
and where they end in inner products between positions, a matrix for each channel.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from hbpcompiler.graph import Graph
from hbpcompiler.routes.site import COLUMNS, DIAGONAL_FORM
from hbpcompiler.steps import Close, Piece, Plan

CONVOLUTIONS = (F.conv2d, F.conv_transpose2d)
WEIGHT = 1
"""Its place among a convolution's arguments, and among the results of convolution_backward."""
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


def use_channels_last(graph: fx.Graph) -> None:
    """Lay out weights of 2-D convolutions pixel by pixel. After `annotate`."""
    weights = [node for node in graph.nodes if _is_parameter(node) and any(
        user.target in CONVOLUTIONS and user.args[WEIGHT] is node for user in node.users)]
    for weight in weights:
        _relayed(graph, weight, memory_format=torch.channels_last)
    for node in list(graph.nodes) if weights else []:
        backward = node.args[0] if node.target is operator.getitem else None
        if isinstance(backward, fx.Node) and backward.target is torch.ops.aten.convolution_backward \
                and node.args[1] == WEIGHT:
            _relayed(graph, node)  # results lie as the parameters do
    graph.lint()


def _is_parameter(node: fx.Node) -> bool:
    return (node.op == "call_method" and node.target == "detach" and len(node.meta.get("shape", ())) == 4
            and node.meta.get("dtype") is torch.float32)


def _relayed(graph: fx.Graph, node: fx.Node, **options: Any) -> None:
    """A copy in another layout in the node's place and under its name."""
    with graph.inserting_after(node):
        copy = graph.call_method("contiguous", (node,), options)
    copy.meta = dict(node.meta)
    node.meta = {key: item for key, item in node.meta.items() if key != "hint"}
    node.replace_all_uses_with(copy, delete_user_cb=lambda user: user is not copy)
