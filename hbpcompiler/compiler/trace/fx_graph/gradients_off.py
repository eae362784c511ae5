"""Blocks of the user's that turn gradients off: `with torch.no_grad():`, its decorator, `torch.inference_mode()`.

torch.export keeps one as a call of a graph of its own, and a decomposition would put its operations back as if
gradients were on. So what comes into a block is detached first, and the block's operations take the call's place here,
where they keep the lines of the user's code that they come from.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node

from hbpcompiler.compiler.trace.source.source import source_of
from hbpcompiler.errors import ModelError, listing
from hbpcompiler.rules.shared.torch_operations import DETACH


def without_their_derivatives(program: Any) -> None:
    """Give an ExportedProgram's blocks without gradients the derivative that they have: none.

    All are laid open: a graph with none of them needs no second trace of torch's (see `functional`). Raises ModelError
    where a block changes a trained value in place, whose derivative would stay that of the value before.
    """
    nested = [module for module in program.graph_module.modules() if isinstance(module, GraphModule)]
    for module in reversed(nested):
        known = _trained(program) if module is program.graph_module else None
        for call in list(module.graph.nodes):
            block = _block_of(module, call)
            if block is not None:
                _check_nothing_changes(block, call, known)
                _put_in(module, call, block, known)
        module.recompile()


def _block_of(module: GraphModule, call: Any) -> GraphModule | None:
    """The graph that runs without gradients in this call; None if the call is another one."""
    if call.op != "call_function" or "set_grad_enabled" not in str(call.target) or call.args[0] is not False:
        return None
    block = getattr(module, str(call.args[1].target))
    assert isinstance(block, GraphModule)
    return block


def _put_in(module: GraphModule, call: Any, block: GraphModule, known: set[Node] | None) -> None:
    """The block's operations instead of the call."""
    graph = module.graph
    values: dict[Node, Any] = {}
    given = iter(call.args[2:])
    node: Any
    with graph.inserting_before(call):
        for node in block.graph.nodes:
            if node.op == "placeholder":
                values[node] = item = next(given)
                if _is_trained(item, known):
                    values[node] = graph.call_function(DETACH, (item,))
                    values[node].meta = dict(call.meta, val=item.meta["val"])
            elif node.op == "get_attr":
                name = f"{call.name}_{node.target}"
                setattr(module, name, getattr(block, node.target))
                values[node] = graph.get_attr(name)
                values[node].meta = dict(node.meta)
            elif node.op == "call_function":
                values[node] = graph.node_copy(node, values.__getitem__)
    results: Any = torch.fx.map_arg(block.graph.output_node().args[0], values.__getitem__)
    for user in list(call.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(results[user.args[1]])
        graph.erase_node(user)
    holder = call.args[1]
    graph.erase_node(call)
    if not holder.users:
        graph.erase_node(holder)


def _check_nothing_changes(block: GraphModule, call: Any, known: set[Node] | None) -> None:
    """Raise ModelError if the block writes into a trained value that somebody made outside it."""
    node: Any
    shared: dict[Node, set[Node]] = {}  # node of the block: what its memory may be, of what is given
    for node, item in zip(block.graph.find_nodes(op="placeholder"), call.args[2:], strict=True):
        of_parameter = isinstance(item, Node) and item.op == "placeholder"  # which is refused with its name
        shared[node] = {node} if _is_trained(item, known) and not of_parameter else set()
    found: list[str] = []
    for node in block.graph.nodes:
        schema: Any = getattr(node.target, "_schema", None)
        if schema is None:
            continue
        aliased = [(item, argument.alias_info) for item, argument in zip(node.args, schema.arguments, strict=False)
                   if isinstance(item, Node) and argument.alias_info is not None]
        if any(alias.is_write and shared.get(item) for item, alias in aliased):
            found.append(str(source_of(node)))
        shared[node] = set().union(*(shared.get(item, set()) for item, _ in aliased))
    if found:
        raise ModelError(listing(
            "A value with a derivative is changed in place under torch.no_grad() (or torch.inference_mode()), so that "
            "its derivative stays that of the value before:", sorted(set(found))[:5],
            "Write h = h + (changed - h).detach() for this, or h = changed, without no_grad(), for the derivative of "
            "what h becomes."))


def _is_trained(item: Any, known: set[Node] | None) -> bool:
    """Whether a derivative may come through; `known` are the nodes of which it may, None if that was not found out."""
    if not isinstance(item, Node) or not _is_real_or_complex(item.meta.get("val")):
        return False
    return known is None or item in known


def _is_real_or_complex(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _trained(program: Any) -> set[Node]:
    """What depends on a trainable parameter by way of real or complex tensors, outside blocks without gradients."""
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    found: set[Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            trained = spec.kind is InputKind.PARAMETER and program.state_dict[spec.target].requires_grad
        else:
            value = node.meta.get("val")
            exact = isinstance(value, Tensor) and not _is_real_or_complex(value)
            ends = node.target is DETACH or _block_of(program.graph_module, node) is not None
            trained = not exact and not ends and _any(found, node.all_input_nodes)
        if trained:
            found.add(node)
    return found


def _any(found: set[Node], nodes: Iterable[Node]) -> bool:
    return not found.isdisjoint(nodes)
