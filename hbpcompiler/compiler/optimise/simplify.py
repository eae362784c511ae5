"""Passes that make a program simpler: nothing twice, nothing for nothing."""

from __future__ import annotations

import operator

import torch
from torch import fx

from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.kernels import TAKE_MASKS
from hbpcompiler.compiler.program.loop_call import LoopCall
from hbpcompiler.compiler.program.nodes import RESHAPES, replace_by, writes_in_place
from hbpcompiler.compiler.program.writer import Loop

INVERSE = {"flatten": ("unflatten", "rows"), "squeeze": ("unsqueeze", "row")}
"""method -> (the method it undoes, what the value before both is of the value between)."""


def cancel_inverses(graph: fx.Graph) -> None:
    """flatten(0, 1) after unflatten(0, ...), squeeze(1) after unsqueeze(1), or any axis: the value before both."""
    for node in list(graph.nodes):
        if node.op != "call_method" or node.target not in INVERSE:
            continue
        method, ending = INVERSE[node.target]
        before = node.args[0]
        undoes = (isinstance(before, fx.Node) and before.op == "call_method" and before.target == method
                  and (len(before.args) == len(node.args) == 2 and before.args[1:] == node.args[1:]
                       if method == "unsqueeze" else before.args[1] in (0, 1) and node.args[1:] == (0, 1)))
        if undoes and isinstance(before, fx.Node):
            source = before.all_input_nodes[0]
            if meta.hint(before) and not meta.wish(source):
                meta.set_wish(source, f"{meta.hint(before)}_{ending}")
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def drop_idle_axes(graph: fx.Graph) -> None:
    """With shapes known: x.unsqueeze(1).flatten(-2).squeeze(1) is x.flatten(-2), an axis that nothing meets."""
    for node in list(graph.nodes):
        if node.op != "call_method" or node.target != "squeeze" or node.args[1:] != (1,):
            continue
        between: list[fx.Node] = []
        before = node.args[0]
        while isinstance(before, fx.Node) and _is_of_last_axes(before) and len(before.users) == 1:
            between.append(before)
            before = before.args[0]
        if not (between and isinstance(before, fx.Node) and before.op == "call_method" and before.args[1:] == (1,)
                and before.target == "unsqueeze"):
            continue
        between[-1].replace_input_with(before, before.all_input_nodes[0])
        for own in between:
            lengths, dtype = meta.shape(own), meta.dtype(own)
            assert lengths is not None
            assert dtype is not None
            meta.set_tensor(own, lengths[:1] + lengths[2:], dtype)
        replace_by(graph, node, between[0])


TURNED = ((-2, -1), (-1, -2))


def drop_turns_back(graph: fx.Graph) -> None:
    """With shapes known: x.mT.mT is x, also with x.unsqueeze(1) in between, which leaves the last two axes the last."""
    for node in list(graph.nodes):
        between = node.args[0] if _is_turned(node) else None
        if not isinstance(between, fx.Node):
            continue
        if _is_turned(between):
            replace_by(graph, node, between.all_input_nodes[0])
        elif between.op == "call_method" and between.target == "unsqueeze" and _is_turned(between.all_input_nodes[0]):
            (axis,) = between.args[1:]
            source = between.all_input_nodes[0].all_input_nodes[0]
            lengths = meta.shape(source)
            if lengths is not None and isinstance(axis, int) and 0 <= axis <= len(lengths) - 2:
                with graph.inserting_before(node):
                    replace_by(graph, node, meta.copy(graph.call_method("unsqueeze", (source, axis)), node))


def _is_turned(node: fx.Node) -> bool:
    """Whether it is a tensor with its last two axes in the other order."""
    return node.op == "call_method" and node.target == "transpose" and node.args[1:] in TURNED


def _is_of_last_axes(node: fx.Node) -> bool:
    """Whether it lays axes behind the second together, which are counted from the end."""
    if node.op != "call_method" or node.target != "flatten" or len(node.args) != 2:
        return False
    first, lengths = node.args[1], meta.shape(node.all_input_nodes[0])
    return isinstance(first, int) and first < 0 and lengths is not None and len(lengths) + first >= 2


def read_shapes_at_the_source(graph: fx.Graph) -> None:
    """u.unflatten(0, v.shape[:2]).shape[:2] is v.shape[:2]: no tensor is kept for its shape alone."""
    for node in list(graph.nodes):
        if node.target is not operator.getitem or node.args[1] != slice(None, 2, None):
            continue
        shape = node.args[0]
        if not (isinstance(shape, fx.Node) and shape.target is getattr and shape.args[1] == "shape"):
            continue
        tensor = shape.args[0]
        if isinstance(tensor, fx.Node) and tensor.op == "call_method" and tensor.target == "unflatten":
            prefix = tensor.args[2]
            if tensor.args[1] == 0 and isinstance(prefix, fx.Node) and prefix.args[1:] == (slice(None, 2, None),):
                node.replace_all_uses_with(prefix)
                graph.erase_node(node)


NEUTRAL = {operator.mul: (1,), operator.truediv: (1,), operator.add: (0,), operator.sub: (0,)}


def drop_neutral(graph: fx.Graph) -> None:
    """With dtypes known: x * 1, x / 1, x + 0: x. Of truths, and of whole numbers by a float, they make other ones."""
    for node in list(graph.nodes):
        if node.target in NEUTRAL and isinstance(node.args[0], fx.Node) and not isinstance(node.args[1], fx.Node):
            other = node.args[1]
            neutral = isinstance(other, int | float) and other in NEUTRAL[node.target]
            if neutral and _is_of_its_kind(node, node.args[0]):
                replace_by(graph, node, node.args[0])


def _is_of_its_kind(node: fx.Node, before: fx.Node) -> bool:
    """Whether arithmetic with a number leaves a tensor's dtype, or a length a whole number."""
    if meta.is_no_tensor(before):
        return isinstance(node.args[1], int) and node.target is not operator.truediv
    return meta.dtype(node) == meta.dtype(before) is not None


def drop_dead(graph: fx.Graph) -> None:
    """What nothing reads is not computed, and not passed to loops."""
    for node in reversed(list(graph.nodes)):
        if isinstance(node.target, Loop):
            LoopCall.of(node).drop_unread()
        if node.op in ("placeholder", "output") or node.users:
            continue
        if writes_in_place(node) and _outlives(node):
            continue
        if isinstance(node.target, Loop) and not node.args[0]:
            continue  # a loop inside a loop, which adds to totals of the outer one
        graph.erase_node(node)


def _outlives(node: fx.Node) -> bool:
    """Whether what an in-place call writes to, perhaps a part of it, is seen by others, as by a loop's total."""
    target = node.args[0]
    while isinstance(target, fx.Node) and target.target is operator.getitem and len(target.users) == 1:
        target = target.args[0]
    return isinstance(target, fx.Node) and (target.op == "placeholder" or len(target.users) > 1)


def drop_idle_reshapes(graph: fx.Graph) -> None:
    """With shapes known: a reshape to the same shape is nothing, a reshape of a reshape is one. A view as another dtype
    is no reshape."""
    for node in list(graph.nodes) * 2:  # twice: collapsing two makes new ones idle
        if node._erased:
            continue
        if _is_identity_einsum(node):
            replace_by(graph, node, node.args[1])
        elif _is_back_again(node):
            replace_by(graph, node, node.args[0].args[0])
        elif _is_reshape(node):
            before = node.args[0]
            if meta.shape(before) == meta.shape(node) is not None:
                replace_by(graph, node, before)
            elif (node.target == "reshape" and _is_reshape(before)
                  and not any(isinstance(item, fx.Node) for item in node.args[1:])):
                node.args = (before.args[0], *node.args[1:])


def _is_reshape(node: fx.Node) -> bool:
    return (node.op == "call_method" and node.target in RESHAPES
            and meta.dtype(node) == meta.dtype(node.all_input_nodes[0]))


SURE = frozenset({torch.float32, torch.float64})
"""Dtypes that kernels compute in: what they save in others differs between devices."""


def drop_idle_casts(graph: fx.Graph) -> None:
    """With dtypes known: a cast to the dtype that is there is nothing; a mask that only meets floating-point factors
    need not be made floating-point first."""
    for node in list(graph.nodes):
        if node.op != "call_method" or node.target != "type_as":
            continue
        mask = node.args[0]
        if meta.dtype(mask) is meta.dtype(node) and meta.dtype(node) in SURE:
            replace_by(graph, node, mask)
            continue
        views = [user for user in node.users if user.target == "unsqueeze"]
        readers = [user for read in (node, *views) for user in read.users if user not in views]
        if meta.dtype(mask) is torch.bool and views and all(
                user.target in TAKE_MASKS and user.args[0] not in (node, *views)
                and meta.dtype(user.args[0]) == meta.dtype(node) for user in readers):
            for view in views:
                meta.set_tensor(view, meta.shape(view) or (), torch.bool)
            replace_by(graph, node, mask)


def _is_back_again(node: fx.Node) -> bool:
    """squeeze(1) and then unsqueeze(1), where an axis was left out and is there again."""
    before = node.args[0] if node.op == "call_method" and node.target == "unsqueeze" else None
    if not isinstance(before, fx.Node) or before.op != "call_method" or before.target != "squeeze":
        return False
    source = before.args[0]
    return before.args[1:] == node.args[1:] and isinstance(source, fx.Node) and meta.alike(source, node)


def _is_identity_einsum(node: fx.Node) -> bool:
    if node.target is not torch.einsum or len(node.args) != 2:
        return False
    left, _, right = str(node.args[0]).partition("->")
    return left == right and len(set(left)) == len(left)
