"""What a node of a program is: what it calls, whether it writes in place, whether equal ones can be shared."""

from __future__ import annotations

from typing import Any

from torch import fx

from hbpcompiler.compiler.program.writer import Loop

RANDOM = {"rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "bernoulli", "multinomial", "poisson",
          "dropout", "feature_dropout", "alpha_dropout", "dropout1d", "dropout2d", "dropout3d", "normal", "binomial",
          "native_dropout", "feature_alpha_dropout", "bernoulli_"}


FRESH = {"new_zeros", "zeros", "new_empty", "empty", "zeros_like", "empty_like", "new_full"}
"""Buffers that somebody may write into: two equal ones are still two."""


def called(node: fx.Node) -> str:
    """The bare name of what a node calls."""
    if node.op == "call_method":
        return str(node.target)
    return str(getattr(node.target, "__name__", node.target))


def writes_in_place(node: fx.Node) -> bool:
    """Whether the node changes one of its arguments."""
    name = called(node)
    return node.op in ("call_method", "call_function") and name.endswith("_") and not name.endswith("__")


def is_pure(node: fx.Node) -> bool:
    """Whether equal arguments give an equal, shareable value and nothing else happens."""
    return (node.op in ("call_method", "call_function") and not writes_in_place(node)
            and called(node) not in RANDOM | FRESH and not isinstance(node.target, Loop))


def replace_by(graph: fx.Graph, node: fx.Node, other: Any) -> None:
    """Another node takes the place of this one, and its name if it has none."""
    hint = node.meta.get("hint")
    if hint and not other.meta.get("hint") and other.op != "placeholder":
        other.meta["hint"] = hint
    node.replace_all_uses_with(other)
    graph.erase_node(node)


BEGINS, ENDS = "begins", "ends"
"""meta["curvature"] of the casts that the backward pass writes."""
