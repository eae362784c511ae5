"""An exported graph whose operations change nothing in place, as the reader wants it.

`ExportedProgram.run_decompositions` traces the whole graph twice to that end, which takes as long as the export. Most
graphs need little of it: an operation that changes a tensor whose memory nobody else sees is its functional form, and
what torch writes as several operations (reshape, contiguous, batch_norm) is traced by itself. A graph that needs more
goes torch's way.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch.export.graph_signature import TensorArgument
from torch.fx import Graph, Node, map_arg
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

aten = torch.ops.aten
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
COPIES = {aten.lift_fresh_copy.default: aten.clone.default}


class _NeedsAllError(Exception):
    """What only torch's own way can write."""


def functional(program: Any) -> Any:
    """The ExportedProgram by operations that change nothing, composites kept whole where torch keeps them.

    It may be the program itself, changed.
    """
    writer = _Writer()
    try:
        _check_no_autocast(program.graph)
        outputs = writer.write(program.graph)
    except _NeedsAllError:
        return program.run_decompositions({})
    specs = program.graph_signature.output_specs
    specs[:] = [replace(spec, arg=TensorArgument(name=node.name)) for spec, node in zip(specs, outputs, strict=True)]
    program.graph_module.graph = writer.graph
    return program


def _check_no_autocast(graph: Graph) -> None:
    """Autocast casts what operations read when they run, here in torch's second trace."""
    given = [node.meta.get("val") for node in graph.find_nodes(op="placeholder")]
    kinds = {value.device.type for value in given if isinstance(value, Tensor)} - {"meta"}
    if any(torch.is_autocast_enabled(kind) for kind in kinds):
        raise _NeedsAllError


class _Writer:
    """Copies a graph node by node."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.values: dict[Node, Any] = {}
        """Node before -> what stands for it at this place of the copy: a node, or several."""
        self.memory: dict[Node, int] = {}
        """Node of the copy -> a number of the memory that it lies in."""
        self.inside: list[set[Node]] = []
        """By this number: the nodes before that lie in it."""
        self.traced: dict[Any, Graph] = {}

    def write(self, before: Graph) -> Any:
        """Copy all, and return what the copy puts out."""
        for node in before.nodes:
            if node.op == "call_function":
                self._call(node, node.target)
            elif node.op in ("placeholder", "output"):
                self._is(node, self._copy(node, self.values))
            else:
                raise _NeedsAllError
        return self.graph.output_node().args[0]

    def _call(self, node: Node, called: Any) -> None:
        if isinstance(called, torch._ops.HigherOrderOperator):
            raise _NeedsAllError
        source: Any = node.args[0] if called is operator.getitem else None
        if source is not None and isinstance(self.values[source], Sequence):
            self._is(node, self.values[source][node.args[1]])
        elif not isinstance(called, torch._ops.OpOverload):
            self._is(node, self._copy(node, self.values))
        elif called._schema.is_mutable:
            self._is(node, self._without_change(node, called))
        elif _is_written_out(called):
            self._is(node, self._written_out(node, called))
        else:
            copy = self._copy(node, self.values)
            copy.target = COPIES.get(called, called)
            self._is(node, copy)

    def _copy(self, node: Node, values: Mapping[Node, Any]) -> Node:
        """A node in the copy, of what stands for its arguments."""
        copy = self.graph.node_copy(node, values.__getitem__)
        shared = {self.memory[read] for read in _shared(copy)}
        if not shared:
            shared.add(len(self.inside))
            self.inside.append(set())
        if len(shared) > 1:
            raise _NeedsAllError
        self.memory[copy] = shared.pop()
        return copy

    def _is(self, node: Node, value: Any) -> None:
        """What stands for a node before from here on."""
        self.values[node] = value
        for part in value if isinstance(value, Sequence) else [value]:
            self.inside[self.memory[part]].add(node)

    def _without_change(self, node: Node, called: Any) -> Node:
        """The functional form of an operation that changes its first argument, of which there is no view."""
        target, form = node.args[0], _functional_form(called)
        if form is None or not isinstance(target, Node) or not _alike(node):
            raise _NeedsAllError
        before = self.values[target]
        same = self.inside[self.memory[before]]
        if any(other.op == "placeholder" or self.values[other] is not before for other in same):
            raise _NeedsAllError
        copy = self.graph.node_copy(node, self.values.__getitem__)
        copy.target = form
        self.memory[copy] = self.memory[before]
        for other in same:
            self.values[other] = copy
        return copy

    def _written_out(self, node: Node, called: Any) -> Any:
        """A composite operation by its parts."""
        traced, given = self._traced(node, called)
        values: dict[Node, Any] = dict(zip(traced.find_nodes(op="placeholder"), [self.values[read] for read in given],
                                           strict=True))
        for part in traced.nodes:
            if _is_copy_of_input(part) and _may_alias(called):
                values[part] = values[part.args[0]]  # dropout in eval mode is its input; torch's trace copies it
            elif part.op == "call_function" and not _changes(part.target):
                values[part] = copy = self._copy(part, values)
                copy.meta = {**node.meta, "val": part.meta["val"]}
            elif part.op not in ("placeholder", "output"):
                raise _NeedsAllError
        return map_arg(traced.output_node().args[0], values.__getitem__)

    def _traced(self, node: Node, called: Any) -> tuple[Graph, list[Node]]:
        """A call by itself: its graph, and the nodes that it reads; once for calls of tensors that are alike."""
        leaves, form = pytree.tree_flatten((node.args, node.kwargs))
        given = [leaf for leaf in leaves if isinstance(leaf, Node)]

        def run(*values: Any) -> Any:
            known = iter(values)
            filled = [next(known) if isinstance(leaf, Node) else leaf for leaf in leaves]
            arguments, named = pytree.tree_unflatten(filled, form)
            return called(*arguments, **named)

        key = (called, form, *map(_like, leaves))
        if key not in self.traced:
            with enable_python_dispatcher():
                self.traced[key] = make_fx(run)(*(read.meta["val"] for read in given)).graph
        return self.traced[key], given


def _like(leaf: Any) -> Any:
    """What a trace sees of an argument: of a tensor not its numbers."""
    if not isinstance(leaf, Node):
        return type(leaf), leaf
    value = leaf.meta["val"]
    if not isinstance(value, Tensor):
        return str(value)
    return str((value.shape, value.stride(), value.dtype, value.device, value.requires_grad, value.is_conj()))


def _is_copy_of_input(part: Node) -> bool:
    return part.target is aten.clone.default and part.all_input_nodes[0].op == "placeholder"


def _shared(node: Node) -> list[Node]:
    """The arguments that a node may be a view of."""
    called: Any = node.target
    if called is operator.getitem:
        return [read for read in node.all_input_nodes if _shared(read)]
    if not isinstance(called, torch._ops.OpOverload):
        return []
    arguments = called._schema.arguments
    given = {argument.name: item for argument, item in zip(arguments, node.args, strict=False)} | dict(node.kwargs)
    return [leaf for argument in arguments if argument.alias_info
            for leaf in pytree.tree_leaves(given.get(argument.name)) if isinstance(leaf, Node)]


def _changes(called: Any) -> bool:
    return isinstance(called, torch._ops.OpOverload) and called._schema.is_mutable


def _is_written_out(called: Any) -> bool:
    """Whether torch takes an operation apart: a composite one that may be a view, or change a buffer."""
    if called is aten.native_batch_norm.default:
        return True
    composite = called.has_kernel_for_dispatch_key(COMPOSITE) or COMPOSITE in called.py_kernels
    return composite and (_may_alias(called) or any(argument.alias_info for argument in called._schema.arguments))


def _may_alias(called: Any) -> bool:
    """Whether the schema does not say that the operation may return its input, or change a buffer."""
    return torch.Tag.maybe_aliasing_or_mutating in called.tags


def _functional_form(called: Any) -> Any:
    """relu of relu_, with the same arguments; None if there is none, or if more than the first is changed."""
    schema = called._schema
    name, overload = schema.name.removeprefix("aten::"), schema.overload_name or "default"
    changed = [argument.name for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write]
    if not name.endswith("_") or changed != [schema.arguments[0].name] or called.namespace != "aten":
        return None
    form = getattr(getattr(aten, name[:-1], None), overload, None)
    if form is None or [(a.name, str(a.type)) for a in form._schema.arguments] != [
            (a.name, str(a.type)) for a in schema.arguments]:
        return None
    return form


def _alike(node: Node) -> bool:
    """Whether all tensors have the dtype of the changed one, which keeps its own."""
    values = [read.meta.get("val") for read in node.all_input_nodes]
    return len({value.dtype for value in values if isinstance(value, Tensor)}) == 1
