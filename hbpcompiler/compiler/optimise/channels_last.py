"""An optimisation pass: images lie in memory channel by channel, or pixel by pixel (channels last).

oneDNN's convolutions and torch's pools work pixel by pixel and rearrange what lies otherwise, what they return too. If
a convolution's weight is laid out so, all that follows is. First-order quantities gain: 3C3D:64 takes 0.8 times as
long. Columns gain as much at convolutions, and lose it again in max-pooling, which scatters them channel by channel,
and where they end in inner products between positions, a matrix for each channel.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from hbpcompiler.compiler.program import meta
from hbpcompiler.rules.shared.torch_operations import LAID_AS_GIVEN


def use_channels_last(graph: fx.Graph, images: Collection[str]) -> None:
    """Lay out weights of images' operations, `images` in the state, pixel by pixel. After `annotate`."""
    weights = [node for node in graph.nodes if _key(node) in images and _is_laid_out(node)]
    for weight in weights:
        _relayed(graph, weight, memory_format=torch.channels_last)
    for node in list(graph.nodes) if weights else []:
        kernel = node.args[0] if node.target is operator.getitem else None
        if isinstance(kernel, fx.Node) and LAID_AS_GIVEN.get(kernel.target) == node.args[1]:
            _relayed(graph, node)  # results lie as the parameters do


def _key(node: fx.Node) -> Any:
    """The name in the state of the tensor that this node takes out of it."""
    entry = node.args[0] if node.op == "call_method" and node.target == "detach" else None
    return entry.args[1] if isinstance(entry, fx.Node) and entry.target is operator.getitem else None


def _is_laid_out(node: fx.Node) -> bool:
    """Whether torch has another layout for it."""
    return len(meta.shape(node) or ()) == 4 and meta.dtype(node) is torch.float32


def _relayed(graph: fx.Graph, node: fx.Node, **options: Any) -> None:
    """A copy in another layout in the node's place and under its name."""
    with graph.inserting_after(node):
        copy = graph.call_method("contiguous", (node,), options)
    meta.move(copy, node)
    node.replace_all_uses_with(copy, delete_user_cb=lambda user: user is not copy)
