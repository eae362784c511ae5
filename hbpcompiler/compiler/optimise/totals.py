"""Passes over totals that loops add to: products go straight into them, and what divides them is multiplied with.

A Kronecker factor of a wide convolution has tens of megabytes. A product that is made apart and then added, and a
quotient that is made of the total, each cost as much as the product itself: fresh memory is paid for in page faults.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch import fx

from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.kernels import GROWING, gram_to_, onednn_gram_to_, pixel_gram_to_
from hbpcompiler.compiler.program.meta import Role
from hbpcompiler.compiler.program.writer import Loop, LoopCall

SCALES: dict[Any, str] = {"add_": "alpha", "addmm_": "alpha", "baddbmm_": "alpha", gram_to_: "scale",
                          onednn_gram_to_: "scale", pixel_gram_to_: "scale"}
"""What adds to its first argument -> by which argument it takes a multiple of what is added."""


def add_to_totals(graph: fx.Graph) -> None:
    """total.add_(gram(x)) becomes gram_to_(total, x) where nobody else reads the Gram matrix. After `annotate`."""
    for node in list(graph.nodes):
        if node.op != "call_method" or node.target != "add_" or len(node.args) != 2 or node.kwargs:
            continue
        total, product = node.args
        if (isinstance(product, fx.Node) and product.target in GROWING and len(product.users) == 1
                and "dtype" not in product.kwargs and isinstance(total, fx.Node) and meta.alike(total, product)):
            given = dict[str, fx.node.Argument]()
            given.update({name: value for name, value in product.kwargs.items() if value is not None})
            with graph.inserting_before(node):
                grown = graph.call_function(GROWING[product.target], (total, *product.args), given)
            meta.move(grown, node)
            node.replace_all_uses_with(grown)
            graph.erase_node(node)
            graph.erase_node(product)


def scale_as_totals_grow(graph: fx.Graph) -> None:
    """total / N of a loop becomes the total of what is added, each time over N. After `annotate`."""
    for node in list(graph.nodes):
        if node.target is not operator.truediv or not isinstance(node.args[0], fx.Node):
            continue
        item, divisor = node.args
        if not isinstance(divisor, fx.Node) or meta.role(divisor) is not Role.BATCH_SIZE:
            continue
        call = _loop_of(item, node)
        if call is None:
            continue
        number: Any = item.args[1]
        total = call.filled[number]
        additions = None if total not in call.totals else list(_additions(total.inner))
        if not additions or None in additions:
            continue
        count = call.pass_whole(divisor, "batch_size")
        for addition in additions:
            assert addition is not None
            with call.loop.body.inserting_before(addition):
                scale = call.loop.body.call_function(operator.truediv, (1, count))
            meta.place(scale, addition)
            meta.set_no_tensor(scale)
            addition.kwargs = {**addition.kwargs, SCALES[addition.target]: scale}
        if meta.hint(item):
            meta.rename(item, f"mean_{meta.hint(item)}")  # the quotient's name may be a result's, which is a table
        node.replace_all_uses_with(item)
        graph.erase_node(node)


def _loop_of(item: fx.Node, reader: fx.Node) -> LoopCall | None:
    """The loop that a total comes from, if it begins with zeros of its own, and is read here alone."""
    loop = item.args[0] if item.target is operator.getitem and item.args else None
    if not isinstance(loop, fx.Node) or not isinstance(loop.target, Loop):
        return None
    call = LoopCall.of(loop)
    number: Any = item.args[1]
    begun = call.filled[number].outer
    fresh = begun.target == "new_zeros" and len(begun.users) == 1
    only = [user for user in loop.users if user.args[1] == number] == [item]
    return call if fresh and only and list(item.users) == [reader] else None


def _additions(total: fx.Node) -> Iterator[fx.Node | None]:
    """What a body adds to a total, or to a part of it; None for anything else that it does with it."""
    for user in total.users:
        if user.target is operator.getitem and user.args[0] is total:
            yield from _additions(user)
        elif user.target in SCALES and user.args[0] is total and not user.users and SCALES[user.target] not in (
                user.kwargs) and "beta" not in user.kwargs and total not in user.args[1:]:
            yield user
        else:
            yield None

