"""What a node of a program is: one table of facts, asked from torch's own schemas where they know.

torch says which operations draw random numbers (a tag), write to what they are given and return views (their schemas).
What it does not say stands in the sets below, by the bare name of what is called; no other module has such sets. A pass
that writes one call as another (x.square() as x.square_()) has a table of both: that is what the pass does, and says
nothing of a call by itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx

from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.writer import Loop
from hbpcompiler.rule.idioms import IDIOMS

BUFFERS = frozenset({"new_zeros", "zeros", "new_empty", "empty", "zeros_like", "empty_like", "new_full",
                     "large_empty", "empty_histogram", "empty_histogram_2d"})
"""Memory that somebody may write into: two equal ones are still two."""
DRAWS = frozenset({"dropout1d", "dropout2d", "dropout3d"})
"""Written in Python, so that torch knows nothing of them."""
MAY_RETURN_ITS_INPUT = frozenset({"type_as", "getitem", "weighted"})
"""Their schemas do not say that the result may share memory with the input, or they have none."""
SPREAD = frozenset({"expand", "expand_as", "unfold", "diagonal"})
"""Views in which one number may stand for several: never written to."""
CASTS = frozenset({"to", "type_as", "detach", "weighted"})
"""They may return their input, but are no moves of numbers."""
COPIES = frozenset({"pad", "patches", "patch_rows", "index_select", "gather", "embedding", "rows_at",
                    "repeat_interleave", "cat", "stack", "getattr"})
"""They move numbers, as views do, to memory of their own."""
RESHAPES = frozenset({"reshape", "flatten", "unflatten", "view"})
"""The same numbers in the same order in another shape."""
MADE_DENSE = frozenset({"scatter_add", "square", "clamp", "new_zeros"})
"""Methods whose result lies in memory of its own, one place for each number."""
POINTWISE = frozenset({operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod,
                       operator.pow, operator.neg, operator.abs, operator.eq, operator.ne, operator.lt, operator.le,
                       operator.gt, operator.ge, operator.and_, operator.or_, operator.xor, operator.invert})
"""Python's own, which make each number of one of each argument."""


@dataclass(frozen=True)
class Facts:
    """What is known of a callable, whatever it is called with."""

    random: bool = False
    """Each call draws other numbers."""
    writes: bool = False
    """It changes its first argument."""
    mutable: bool = False
    """It changes some argument."""
    turns: bool = False
    """It changes its first argument's shape in place."""
    view: bool = False
    """Its result may share memory with its first argument."""
    spreads: bool = False
    """A view in which one number may stand for several."""
    buffer: bool = False
    """It makes memory that somebody may write into."""
    moves: bool = False
    """It only moves numbers, so that a cast may as well come before it."""
    pointwise: bool = False
    """Each number of its result is made of one of each argument."""


def called(node: fx.Node) -> str:
    """The bare name of what a node calls."""
    if node.op == "call_method":
        return str(node.target)
    return str(getattr(node.target, "__name__", node.target))


def facts(node: fx.Node) -> Facts:
    """What is known of what this node calls; of placeholders and the output nothing."""
    if node.op == "call_method":
        return _of_method(str(node.target))
    if node.op != "call_function":
        return Facts()
    if node.target is getattr:
        return _of_attribute(str(node.args[1]))
    target: Any = node.target
    return Facts() if isinstance(target, Loop) else _of_function(target)


def writes_in_place(node: fx.Node) -> bool:
    """Whether the node changes its first argument."""
    return facts(node).writes


def returns_its_input(node: fx.Node) -> bool:
    """Whether the result is the first argument, which lies as before: it was written to."""
    known = facts(node)
    return known.writes and not known.turns and (node.op == "call_method" or node.target in IDIOMS)


def is_pure(node: fx.Node) -> bool:
    """Whether equal arguments give an equal, shareable value and nothing else happens."""
    if node.op not in ("call_method", "call_function") or isinstance(node.target, Loop):
        return False
    known = facts(node)
    return not (known.mutable or known.random or known.buffer)


def shows_its_input(node: fx.Node) -> bool:
    """Whether the node's memory may be that of its first argument: a view, or the tensor that was written to."""
    known = facts(node)
    return known.view or known.writes


def place_of_wanted_results(node: fx.Node) -> int | None:
    """Where among its arguments stands which of its results a kernel is to make: [True, False, False]. None if it makes
    all, or is not told by place."""
    place = _place_of_mask(node.target) if callable(node.target) and not isinstance(node.target, Loop) else None
    return place if place is not None and place < len(node.args) else None


def is_pointwise(node: fx.Node) -> bool:
    """Whether each number of the result is made of one of each argument."""
    return facts(node).pointwise


def replace_by(graph: fx.Graph, node: fx.Node, other: fx.Node) -> None:
    """Another node takes the place of this one, and its name if it has none."""
    if other.op != "placeholder":
        meta.ask_for(other, meta.hint(node))
        meta.set_wish(other, meta.wish(other) or meta.wish(node))
    node.replace_all_uses_with(other)
    graph.erase_node(node)


@cache
def _place_of_mask(target: Any) -> int | None:
    for schema in _schemas(target):
        names = [argument.name for argument in schema.arguments]
        if "output_mask" in names:
            return names.index("output_mask")
    return None


@cache
def _of_method(name: str) -> Facts:
    return _facts(name, getattr(torch.ops.aten, name, None))


@cache
def _of_attribute(name: str) -> Facts:
    """x.mT is a view; x.shape, x.dtype and x.device are no tensors, and move with what they are read from."""
    schemas = _schemas(getattr(torch.ops.aten, name, None))
    return Facts(view=any(_returns_input(schema) for schema in schemas), moves=True)


@cache
def _of_function(target: Callable[..., Any]) -> Facts:
    name = str(getattr(target, "__name__", target))
    if target in POINTWISE:
        return Facts(pointwise=True)
    if isinstance(target, torch._ops.OpOverloadPacket | torch._ops.OpOverload):
        packet = target.overloadpacket if isinstance(target, torch._ops.OpOverload) else target
        space, _, bare = packet._qualified_op_name.partition("::")  # mine::clone may be anything
        return _facts(bare if space == "aten" else packet._qualified_op_name, target)
    if getattr(operator, name, None) is target:
        name = name.rstrip("_")  # and_ has it for Python's sake, and writes nothing
    is_torchs = (getattr(target, "__module__", None) or "torch").partition(".")[0] in ("torch", operator.__name__)
    return _facts(name, getattr(torch.ops.aten, name, None) if is_torchs else None)


def _facts(name: str, packet: Any) -> Facts:
    schemas = _schemas(packet)
    in_place = any(_writes_first(schema) for schema in schemas)
    if not schemas:  # torch's own way of naming such calls
        in_place = name.endswith("_") and not name.endswith("__")
    view = name in MAY_RETURN_ITS_INPUT or (not in_place and any(map(_returns_input, schemas)))
    return Facts(
        random=name in DRAWS or any(torch.Tag.nondeterministic_seeded in each.tags for each in _overloads(packet)),
        writes=in_place,
        mutable=in_place or any(schema.is_mutable for schema in schemas),
        turns=any(torch.Tag.inplace_view in each.tags for each in _overloads(packet)),
        view=view,
        spreads=name in SPREAD,
        buffer=name in BUFFERS,
        moves=(view and name not in CASTS) or name in COPIES,
        pointwise=any(torch.Tag.pointwise in each.tags for each in _overloads(packet)),
    )


def _overloads(packet: Any) -> list[Any]:
    """All but those that write their result into a given tensor."""
    if isinstance(packet, torch._ops.OpOverload):
        return [packet]
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return []
    found = [getattr(packet, name) for name in packet.overloads()]
    return [each for each in found if not any(map(_is_out, each._schema.arguments))]


def _schemas(packet: Any) -> list[Any]:
    return [each._schema for each in _overloads(packet)]


def _is_out(argument: Any) -> bool:
    return argument.kwarg_only and argument.alias_info is not None and argument.alias_info.is_write


def _writes_first(schema: Any) -> bool:
    first = schema.arguments[0].alias_info if schema.arguments else None
    return first is not None and bool(first.is_write)


def _returns_input(schema: Any) -> bool:
    return any(result.alias_info is not None and not result.alias_info.is_write for result in schema.returns)
