"""The most that a program may take, from the shapes that its nodes tell: without running it on meta tensors.

Whether a call is long is asked at each first call of a size; counting what it does (`program_cost`) would take a
tenth of what compiling took. This looks at each node once, in loops for all of their rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from hbpcompiler.compiler.cost.figures import Machine
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.nodes import is_pointwise, shows_its_input, writes_in_place
from hbpcompiler.compiler.program.writer import Loop

PASSES = 4
"""A call may move its tensors so often, and its products may be so many times the least that their shapes allow."""


def seconds_at_most(program: fx.Graph, batch: int, machine: Machine) -> float:
    """About the most that a call with so many samples takes; as a rule several times what it is predicted to take."""
    return _of(program, {"N": batch}, machine)


def _of(graph: fx.Graph, symbols: Mapping[str, int], machine: Machine) -> float:
    of_shapes = dict[Any, float]()  # a network's values have few shapes
    numbers = dict[fx.Node, float]()
    for node in graph.nodes:
        shape = meta.shape(node)
        if shape not in of_shapes:
            of_shapes[shape] = _numbers(shape, symbols)
        numbers[node] = of_shapes[shape]
    total = 0.0
    for node in graph.nodes:
        if isinstance(node.target, Loop):
            length = _axis(node, symbols)
            rounds, chunk = math.ceil(length / node.target.chunk), min(length, node.target.chunk)
            total += rounds * _of(node.target.body, _inside(node.target, symbols, chunk), machine)
        elif node.op.startswith("call"):
            given = sorted((numbers[used] for used in node.all_input_nodes), reverse=True)[:2]
            moves = not shows_its_input(node) or writes_in_place(node) or meta.owns_memory(node)
            total += PASSES * (_of_call(numbers[node], given, machine, not is_pointwise(node)) if moves
                               else machine.seconds_per_call)
    return total


def _of_call(made: float, given: list[float], machine: Machine, may_multiply: bool) -> float:
    """A product [m, k] by [k, n] takes the root of the product of its tensors' numbers, m k n, multiply-adds."""
    adds = math.sqrt(math.prod([made, *given])) if may_multiply and len(given) == 2 else 0.0
    moved = 8 * (made + sum(given))
    return adds / machine.batched_per_second + moved / machine.fresh_bytes_per_second + machine.seconds_per_call


def _axis(node: fx.Node, symbols: Mapping[str, int]) -> int:
    """The length of the axis that a loop goes along; where that is not known, of one chunk."""
    arguments: Any = node.args
    loop: Any = node.target
    lengths = meta.shape(arguments[1][0])
    return loop.chunk if lengths is None else _length(lengths[loop.axis], symbols)


def _inside(loop: Loop, symbols: Mapping[str, int], chunk: int) -> dict[str, int]:
    """The lengths that a body's shapes are written in, in a chunk of this length."""
    around = {f"outer {symbol}" if symbol.endswith(loop.letter) else symbol: length
              for symbol, length in symbols.items()}
    return {**around, loop.letter: chunk}


def _numbers(shape: Sequence[str] | None, symbols: Mapping[str, int]) -> float:
    return float(math.prod(_length(length, symbols) for length in shape or ("0",)))


def _length(length: str, symbols: Mapping[str, int]) -> int:
    """Of "2*n*k + 1"; a symbol that is not known is one."""
    return sum(math.prod(int(factor) if factor.lstrip("-").isdigit() else symbols.get(factor, 1)
                         for factor in term.split("*")) for term in length.split(" + "))
