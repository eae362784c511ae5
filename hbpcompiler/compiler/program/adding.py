"""A program rewritten to add its results to tensors that a call brings, each as soon as it is there.

What a result is divided by goes into its share, so that no quotient is made; a value that is in its total is freed, and
at most one of them is there beside the totals. A symmetric product of two matrices is made in its total, and nowhere
else.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from torch import fx

from hbpcompiler.arguments import ARGUMENTS, DECAY, INTO, SHARES
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.by_sample import copy_of
from hbpcompiler.compiler.program.grams import sum_outer
from hbpcompiler.compiler.program.meta import Role
from hbpcompiler.compiler.program.nodes import shows_its_input
from hbpcompiler.compiler.program.products import onednn_linear
from hbpcompiler.compiler.program.sums import added_, added_product_triangle_, added_triangle_


class Slot(NamedTuple):
    """One tensor of a result."""

    quantity: str
    parameter: str
    """or group"""
    field: str
    """of a named tuple; "" where the value is one tensor"""

    @property
    def key(self) -> str:
        """In a program's dicts: what begins with a module's path can be written once for many modules."""
        return f"{self.parameter} {self.quantity}{'.' if self.field else ''}{self.field}"

    def __str__(self) -> str:
        return f"{self.quantity}[{self.parameter!r}]{'.' if self.field else ''}{self.field}"


Slots = Mapping[Slot, fx.Node]
"""What makes each tensor of a result."""


def slots_of(graph: fx.Graph) -> Slots:
    """Of the dicts in a program's result, without lists of tensors and what is None."""
    results: Any = _output(graph).args[0]
    return dict(_slots(results[2]))


def _slots(results: Mapping[str, Any]) -> Iterator[tuple[Slot, fx.Node]]:
    for quantity, entries in results.items():
        for name, value in entries.items() if isinstance(entries, dict) else []:
            for field, node in value.items() if isinstance(value, dict) else [("", value)]:
                if isinstance(node, fx.Node):
                    yield Slot(quantity, name, field), node


def adding(graph: fx.Graph, wanted: Collection[Slot], same: Mapping[Slot, Slot],
           triangles: Collection[Slot] = ()) -> fx.Graph:
    """A copy of a program with the arguments `INTO`, `DECAY` and `SHARES`, whose results in these slots are the tensors
    that it is given, `decay` times what they were plus a share of the batch's. The result in a slot of `same` is that
    of another one, to which it is added once. Of those in `triangles` the upper triangles alone are added."""
    copied = copy_of(graph)
    arguments = _arguments(copied)
    order = {node: position for position, node in enumerate(copied.nodes)}
    output = _output(copied)
    written: Any = output.args[0]
    loss, outputs, results = written
    slots = slots_of(copied)
    read = Counter(_undivided(node)[0] for node in slots.values())
    values = [_undivided(node)[0] for slot, node in slots.items() if slot in triangles]
    products = {value: factors for value in values if read[value] == 1 and (factors := _factors(value))}
    found = {slot: _added(copied, slot, node, arguments, order, slot in triangles, products)
             for slot, node in slots.items() if slot in wanted}
    found |= {slot: found[other] for slot, other in same.items()}
    before = list(output.all_input_nodes)
    output.args = ((loss, outputs, _with(results, found)),)
    for node in dict.fromkeys([*before, *products]):
        if not node.users and node.op != "placeholder":
            operands = node.all_input_nodes
            copied.erase_node(node)
            for operand in operands if node in products else []:
                if not operand.users and _is_transpose(operand):
                    copied.erase_node(operand)
    return copied


def _with(results: Any, found: Mapping[Slot, fx.Node]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for quantity, entries in results.items():
        changed[quantity] = entries
        if not isinstance(entries, dict):
            continue
        changed[quantity] = {}
        for name, value in entries.items():
            changed[quantity][name] = (
                {field: found.get(Slot(quantity, name, field), node) for field, node in value.items()}
                if isinstance(value, dict) else found.get(Slot(quantity, name, ""), value))
    return changed


class _Arguments(NamedTuple):
    into: fx.Node
    decay: fx.Node
    shares: fx.Node


def _arguments(graph: fx.Graph) -> _Arguments:
    """Placeholders behind those that a call has to give."""
    holders = [node for node in graph.nodes if node.op == "placeholder"]
    last = [node for node in holders if not meta.argument(node) or ARGUMENTS[meta.argument(node)].default is None][-1]
    found: list[fx.Node] = []
    for name in (INTO, DECAY, SHARES):
        with graph.inserting_after(found[-1] if found else last):
            holder = graph.placeholder(f"argument_{name}")
        meta.place(holder, last)
        meta.set_argument(holder, name, ARGUMENTS[name].annotation)
        meta.set_no_tensor(holder)
        found.append(holder)
    return _Arguments(*found)


def _added(graph: fx.Graph, slot: Slot, node: fx.Node, arguments: _Arguments, order: Mapping[fx.Node, int],
           triangle: bool, products: Mapping[fx.Node, tuple[fx.Node, fx.Node]]) -> fx.Node:
    """The tensor that is added to."""
    value, divisor = _undivided(node)
    operands = products.get(value, (value,))
    function = added_product_triangle_ if value in products else added_triangle_ if triangle else added_
    if is_of_results(value):
        last = node
    else:
        last = max(_readers(value, order), key=lambda reader: order[reader], default=value)
    with graph.inserting_after(last):
        total = graph.call_function(operator.getitem, (arguments.into, slot.key))
    with graph.inserting_after(total):
        share = graph.call_function(operator.getitem, (arguments.shares, slot.key))
    parts = (total, *operands, arguments.decay, share)
    with graph.inserting_after(share):
        added = graph.call_function(function, parts if divisor is None else (*parts, divisor))
    for made in (total, share, added):
        meta.place(made, last)
    meta.set_tensor(total, meta.shape(node) or (), meta.dtype(node))
    meta.set_no_tensor(share)
    meta.set_tensor(added, meta.shape(node) or (), meta.dtype(node))
    meta.ask_for(added, f"total_{meta.hint(node)}" if meta.hint(node) else "")
    return added


def _undivided(node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """What is divided by the number of samples, and that number, where this is how a result is made."""
    if node.target in (operator.truediv, "div_", "div") and is_of_results(node) and not node.kwargs:
        value, divisor = node.args
        if (isinstance(value, fx.Node) and isinstance(divisor, fx.Node) and meta.role(divisor) is Role.BATCH_SIZE
                and not is_of_results(value)
                and all(user is node or not is_of_results(user) for user in value.users)):
            return value, divisor
    return node, None


def _factors(value: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(x, y), where the value is x @ y.t(), and nothing but a result reads it."""
    if value.kwargs or len(value.users) != 1:
        return None
    if value.target is sum_outer:
        turned = _turned(value)
        return turned, turned
    if len(value.args) != 2:
        return None
    x, right = value.args
    if not isinstance(x, fx.Node) or not isinstance(right, fx.Node):
        return None
    if any(len(meta.shape(matrix) or ()) != 2 for matrix in (x, right)):
        return None
    if value.target is onednn_linear:
        return x, right
    if value.target is not operator.matmul:
        return None
    if _is_transpose(right):
        return x, right.all_input_nodes[0]
    return (x, x) if _is_transpose(x) and x.args[0] is right else None


def _turned(value: fx.Node) -> fx.Node:
    """Of a sum of outer products of rows, these as columns, in front of it."""
    (rows,) = value.all_input_nodes
    with value.graph.inserting_before(value):
        turned = value.graph.call_method("t", (rows,))
    meta.place(turned, value)
    meta.set_tensor(turned, (meta.shape(rows) or ())[::-1], meta.dtype(rows))
    return turned


def _is_transpose(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target == "t"


def _readers(value: fx.Node, order: Mapping[fx.Node, int]) -> Iterator[fx.Node]:
    """The value and all that reads it, or a view of it, before the results: they may write to it."""
    family = [value]
    for member in family:
        yield member
        for user in member.users:
            if user not in order or user.op == "output" or is_of_results(user) or user in family:
                continue
            yield user
            if shows_its_input(user) and user.args[0] is member:
                family.append(user)


def is_of_results(node: fx.Node) -> bool:
    """Whether a node is a step from what the backward pass gives to a result."""
    block = meta.block(node)
    return block is not None and block.part == "results"


def _output(graph: fx.Graph) -> fx.Node:
    return next(node for node in graph.nodes if node.op == "output")
