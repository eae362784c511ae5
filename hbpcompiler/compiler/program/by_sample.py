"""A program rewritten to draw by sample (see `draws`): it takes a key for each sample, and nothing else is another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from hbpcompiler.arguments import ARGUMENTS, DRAW_KEYS
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.draws import (
    bernoulli_of_samples,
    dropout_of_samples,
    exponential_of_samples,
    integers_of_samples,
    labels_of_samples,
    normal_around_samples,
    normal_of_samples,
    normals_of_samples,
    poisson_of_samples,
    steps_like_samples,
    steps_of_samples,
    uniform_of_samples,
)
from hbpcompiler.compiler.program.lengths import Shape
from hbpcompiler.compiler.program.nodes import called, facts
from hbpcompiler.compiler.program.writer import Loop

Helper = tuple[Callable[..., Any], tuple[Any, ...]]
"""What draws by sample instead, and its arguments behind keys, number and axis."""
OF_TENSORS = frozenset({"dtype", "layout", "device", "pin_memory", "memory_format", "stride"})
"""Arguments that say what tensor is made, and nothing of its numbers."""

IN_DOUBLE = (uniform_of_samples, steps_of_samples, normals_of_samples)
"""They give float64, whatever dtype is drawn."""


def draws_of(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that draw random numbers, in loops too, as they are carried out."""
    found = []
    for node in graph.nodes:
        if isinstance(node.target, Loop):
            found += draws_of(node.target.body)
        elif facts(node).random:
            found.append(node)
    return found


def by_sample(graph: fx.Graph) -> tuple[fx.Graph, list[str]]:
    """A copy of a program that draws by sample, with the call argument `DRAW_KEYS`; and what it still draws otherwise,
    by name."""
    copied = copy_of(graph)
    holders = [node for node in copied.nodes if node.op == "placeholder"]
    needed = [node for node in holders if not meta.argument(node) or ARGUMENTS[meta.argument(node)].default is None]
    with copied.inserting_after(needed[-1]):
        keys = copied.placeholder(f"argument_{DRAW_KEYS}")
    meta.place(keys, needed[-1])
    meta.set_argument(keys, DRAW_KEYS, "Tensor")
    meta.set_tensor(keys, ("N",), torch.int64)
    numbers, left = iter(range(2**31)), list[str]()
    _rewrite(copied, keys, numbers, left)
    return copied, left


def _rewrite(graph: fx.Graph, keys: fx.Node, numbers: Iterator[int], left: list[str]) -> None:
    for node in list(graph.nodes):
        if isinstance(node.target, Loop):
            left += map(called, draws_of(node.target.body))
        elif facts(node).random:
            number, axis, helper = next(numbers), _axis(meta.shape(node) or ()), _helper(node)
            if axis is None or helper is None:
                left.append(called(node))
                continue
            with graph.inserting_before(node):
                drawn = graph.call_function(helper[0], (keys, number, axis, *helper[1]))
                if helper[0] in IN_DOUBLE and meta.dtype(node) != torch.float64:
                    drawn = _cast(graph, meta.copy(drawn, node), meta.dtype(node))
            meta.move(drawn, node)
            node.replace_all_uses_with(drawn)
            graph.erase_node(node)


def _axis(shape: Shape) -> int | None:
    """That of the samples, or of the samples and what lies within them."""
    for axis, length in enumerate(shape):
        if {"N", "n"} & set(length.split("*")):
            return axis
    return None


def _helper(node: fx.Node) -> Helper | None:
    """What draws by sample what this node draws; None where nothing does."""
    name, args = called(node), node.args[: -1] if node.args[-1:] == (None,) else node.args  # no generator
    given = {key: value for key, value in node.kwargs.items() if value is not None and key not in OF_TENSORS}
    if given.pop("generator", None) is not None:
        return None
    if name == "multinomial":
        return _labels(args, given)
    if name == "bernoulli" and not given:
        return bernoulli_of_samples, args
    if name == "poisson" and not given:
        return poisson_of_samples, args
    if name == "dropout" and (given.get("training") is True or args[2:3] == (True,)) and not given.get("inplace"):
        return dropout_of_samples, (args[0], args[1] if len(args) > 1 else given["p"])
    if name == "randint" and len(args) == 3 and not given and meta.dtype(node) == torch.int64:
        return integers_of_samples, (*args[:2], _lengths(args[2]))
    if name == "exponential" and len(args) <= 2 and not given:
        return exponential_of_samples, (args[0], *_floats(args[1:]))
    return _normal(name, args, given) or _uniform(node, name, args, given)


def _labels(args: tuple[Any, ...], given: dict[str, Any]) -> Helper | None:
    """Of rows of probabilities, put back after each draw, or one draw of each."""
    put_back = args[2] if len(args) > 2 else given.get("replacement", False)
    draws = args[1] if len(args) > 1 else given.get("num_samples")
    is_known = not given.keys() - {"replacement", "num_samples"} and isinstance(args[0], fx.Node)
    if is_known and len(meta.shape(args[0]) or ()) == 2 and (put_back or draws == 1):
        return labels_of_samples, (args[0], draws)
    return None


def _normal(name: str, args: tuple[Any, ...], given: dict[str, Any]) -> Helper | None:
    if given:
        return None
    if name in ("randn_like", "normal_functional"):
        return normal_of_samples, args
    if name == "randn" and len(args) == 1:
        return normals_of_samples, (_lengths(args[0]),)
    if name == "normal" and len(args) == 3:
        return normals_of_samples, (_lengths(args[2]), *map(float, args[:2]))
    if name == "normal" and len(args) == 2 and all(isinstance(part, fx.Node) for part in args):
        return normal_around_samples, args
    return None


def _uniform(node: fx.Node, name: str, args: tuple[Any, ...], given: dict[str, Any]) -> Helper | None:
    """What torch draws from 0 to below 1; what a program draws labels by, in float64, is never 0."""
    dtype = meta.dtype(node)
    if dtype is None or not dtype.is_floating_point:
        return None
    steps = 2 / torch.finfo(dtype).eps
    if name == "uniform" and len(args) == 1 and given.keys() == {"low", "high"}:
        return steps_of_samples, (_lengths(args[0]), steps, float(given["low"]), float(given["high"]))
    if given:
        return None
    if name == "uniform" and isinstance(args[0], fx.Node) and len(args) in (1, 3):
        return steps_like_samples, (args[0], steps, *_floats(args[1:]))
    if name == "rand" and len(args) == 1:
        if dtype == torch.float64:
            return uniform_of_samples, (_lengths(args[0]),)
        return steps_of_samples, (_lengths(args[0]), steps)
    if name == "rand_like" and len(args) == 1:
        return steps_like_samples, (args[0], steps)
    return None


def _cast(graph: fx.Graph, drawn: fx.Node, dtype: torch.dtype | None) -> fx.Node:
    meta.set_tensor(drawn, meta.shape(drawn) or (), torch.float64)
    return graph.call_method("to", (drawn, dtype))


def _floats(given: Sequence[Any]) -> list[float]:
    return [float(number) for number in given]


def _lengths(shape: Any) -> list[Any]:
    return list(shape)


def copy_of(graph: fx.Graph) -> fx.Graph:
    """With loops, and their bodies, of its own."""
    copied = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    result = copied.graph_copy(graph, values)
    written = next(node for node in graph.nodes if node.op == "output")
    made = copied.output(result)
    made.meta = dict(written.meta)
    for node in copied.nodes:
        if isinstance(node.target, Loop):
            node.target = replace(node.target, body=copy_of(node.target.body))
    return copied
