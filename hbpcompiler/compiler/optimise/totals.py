"""Passes over totals that loops add to: products go straight into them, what divides them is multiplied with, and the
first turn writes them.

A Kronecker factor of a wide convolution has tens of megabytes. A product that is made apart and then added, and a
quotient that is made of the total, each cost as much as the product itself: fresh memory is paid for in page faults.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx

from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.grams import (
    add_gram_,
    gram_to_,
    mirror_,
    onednn_add_gram_,
    onednn_gram_to_,
    pixel_gram_to_,
)
from hbpcompiler.compiler.program.kernels import GROWING, MADE_SCALED
from hbpcompiler.compiler.program.lengths import numbers
from hbpcompiler.compiler.program.loop_call import LoopCall
from hbpcompiler.compiler.program.meta import Role
from hbpcompiler.compiler.program.pages import large_empty
from hbpcompiler.compiler.program.products import add_products_, onednn_add_product_
from hbpcompiler.compiler.program.writer import Loop
from hbpcompiler.limits import DEFAULT_LIMITS

OVER = "over"
"""By this argument a Gram matrix takes what it is divided by."""
GROWN = (gram_to_, onednn_gram_to_, pixel_gram_to_, add_gram_, onednn_add_gram_)
"""What adds a Gram matrix to its first argument."""
SCALES: dict[Any, str] = {"add_": "alpha", "addmm_": "alpha", "baddbmm_": "alpha", onednn_add_product_: "scale",
                          **dict.fromkeys(GROWN, OVER)}
"""What adds to its first argument -> by which argument it takes a multiple of what is added, or that."""
WRITES: dict[Any, str] = {"addmm_": "beta", "baddbmm_": "beta",
                          **dict.fromkeys((onednn_add_product_, add_products_, *GROWN), "kept")}
"""What adds to all of its first argument -> by which argument it is told how much of that it keeps: 0 or 1 times."""
ADDS_TO: dict[Any, int] = {add_products_: 2}
"""How many of the first arguments are added to, where these are more than one; some may be None."""
MIRRORS = frozenset({mirror_})
"""What moves numbers within a total, so that it may be divided before as well."""


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
    """total / N of a loop becomes the total of what is added, each time over N; gram(x) / N is made over N.

    After `annotate`.
    """
    for node in list(graph.nodes):
        if node.target is not operator.truediv or not isinstance(node.args[0], fx.Node) or node.kwargs:
            continue
        item, divisor = node.args
        assert isinstance(item, fx.Node)
        if not (_scale_gram(graph, item, divisor) or _scale_additions(item, divisor)):
            continue
        if meta.hint(item) and isinstance(divisor, fx.Node):
            meta.rename(item, f"mean_{meta.hint(item)}")  # the quotient's name may be a result's, which is a table
            meta.set_result(item, meta.hint(node))
        else:
            meta.ask_for(item, meta.hint(node))
        node.replace_all_uses_with(item)
        graph.erase_node(node)


def write_first(graph: fx.Graph, large: int = DEFAULT_LIMITS.large_numbers,
                pages: int = DEFAULT_LIMITS.huge_page_bytes) -> None:
    """A loop's first turn writes large totals, where it would add them to zeros. After `annotate`.

    Those of so many bytes as `pages` lie in huge pages.
    """
    for node in list(graph.nodes):
        if isinstance(node.target, Loop):
            call = LoopCall.of(node)
            begun = {passed.inner: passed.outer for passed in call.totals}
            for addition in list(node.target.body.nodes):
                totals = _written_by(addition, begun, large)
                if totals:
                    addition.kwargs = {**addition.kwargs, WRITES[addition.target]: call.begin()}
                for total in totals:
                    total.target = "new_empty"
                    if _takes(total, pages):
                        _in_huge_pages(graph, total)


def _written_by(addition: fx.Node, begun: Mapping[fx.Node, fx.Node], large: int) -> list[fx.Node]:
    """The zeros that large totals of a loop begin with, if all that this node adds to are such, and nobody else's.

    `begun`: where each total of the loop begins, by what stands for it in the body.
    """
    if addition.target not in WRITES or addition.users:
        return []
    count = ADDS_TO.get(addition.target, 1)
    totals = [total for total in addition.args[:count] if isinstance(total, fx.Node)]
    for total in totals:
        start = begun.get(total)
        fresh = start is not None and start.target == "new_zeros" and len(start.users) == 1 and _are_many(start, large)
        if not fresh or len(total.users) != 1 or total in addition.args[count:]:
            return []
    taken = {WRITES[addition.target], "alpha", "scale"} & {*addition.kwargs}  # of no samples the scale would be 1 / 0
    return [] if taken else [begun[total] for total in totals]


def _are_many(node: fx.Node, large: int) -> bool:
    return decided("write first", lambda: numbers(meta.shape(node) or ()) >= large)


def _takes(node: fx.Node, pages: int) -> bool:
    """Whether it has so many bytes."""
    dtype = meta.dtype(node)
    size = 0 if dtype is None else dtype.itemsize
    return decided("huge pages", lambda: numbers(meta.shape(node) or ()) * size >= pages)


def _in_huge_pages(graph: fx.Graph, begun: fx.Node) -> None:
    """x.new_empty(shape) becomes large_empty(x, shape)."""
    like, *shape = begun.args
    lengths: Any = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    with graph.inserting_before(begun):
        made = graph.call_function(large_empty, (like, list(lengths)))
    meta.move(made, begun)
    begun.replace_all_uses_with(made)
    graph.erase_node(begun)


def _scale_gram(graph: fx.Graph, product: fx.Node, divisor: Any) -> bool:
    """A Gram matrix that is read divided alone is made so; whether that was done."""
    if product.target not in MADE_SCALED or len(product.users) != 1:
        return False
    before: Any = product.kwargs.get(OVER, 1)
    if not (_is_batch_size(divisor) or (isinstance(divisor, int) and before == 1)):
        return False
    over = divisor
    if before != 1:
        with graph.inserting_before(product):
            over = graph.call_function(operator.mul, (divisor, before))
        meta.place(over, product)
        meta.set_no_tensor(over)
    product.kwargs = {**product.kwargs, OVER: over}
    return True


def _scale_additions(item: fx.Node, divisor: Any) -> bool:
    """What a loop adds to a total that is read divided alone is scaled; whether that was done."""
    if not (_is_batch_size(divisor) or isinstance(divisor, int)) or len(item.users) != 1:
        return False
    while item.target in MIRRORS and isinstance(item.args[0], fx.Node):
        item = item.args[0]
    call = _loop_of(item)
    if call is None:
        return False
    number: Any = item.args[1]
    total = call.filled[number]
    additions = None if total not in call.totals else list(_additions(total.inner))
    if not additions or None in additions or (isinstance(divisor, int) and not all(
            SCALES[addition.target] == OVER for addition in additions if addition is not None)):
        return False
    count = divisor if isinstance(divisor, int) else call.pass_whole(divisor, "batch_size")
    for addition in additions:
        assert addition is not None
        if SCALES[addition.target] == OVER:
            addition.kwargs = {**addition.kwargs, OVER: _times(call.loop.body, addition, count)}
            continue
        with call.loop.body.inserting_before(addition):
            scale = call.loop.body.call_function(operator.truediv, (1, count))
        meta.place(scale, addition)
        meta.set_no_tensor(scale)
        addition.kwargs = {**addition.kwargs, SCALES[addition.target]: scale}
    return True


def _times(body: fx.Graph, addition: fx.Node, count: Any) -> Any:
    """What a Gram matrix is divided by already, times `count`."""
    before: Any = addition.kwargs.get(OVER, 1)
    if before == 1:
        return count
    with body.inserting_before(addition):
        over = body.call_function(operator.mul, (count, before))
    meta.place(over, addition)
    meta.set_no_tensor(over)
    return over


def _is_batch_size(item: Any) -> bool:
    return isinstance(item, fx.Node) and meta.role(item) is Role.BATCH_SIZE


def _loop_of(item: fx.Node) -> LoopCall | None:
    """The loop that a total comes from, if it begins with zeros of its own, and is read once."""
    loop = item.args[0] if item.target is operator.getitem and item.args else None
    if not isinstance(loop, fx.Node) or not isinstance(loop.target, Loop):
        return None
    call = LoopCall.of(loop)
    number: Any = item.args[1]
    begun = call.filled[number].outer
    fresh = begun.target == "new_zeros" and len(begun.users) == 1
    only = [user for user in loop.users if user.args[1] == number] == [item]
    return call if fresh and only and len(item.users) == 1 else None


def _additions(total: fx.Node) -> Iterator[fx.Node | None]:
    """What a body adds to a total, or to a part of it; None for anything else that it does with it."""
    for user in total.users:
        if user.target is operator.getitem and user.args[0] is total:
            yield from _additions(user)
        elif user.target in SCALES and user.args[0] is total and not user.users and _may_be_scaled(user) and (
                "beta" not in user.kwargs and total not in user.args[1:]):
            yield user
        else:
            yield None


def _may_be_scaled(addition: fx.Node) -> bool:
    """Whether it is not scaled yet, or is a Gram matrix over a number that is known."""
    by = SCALES[addition.target]
    return by not in addition.kwargs or (by == OVER and isinstance(addition.kwargs[by], int))
