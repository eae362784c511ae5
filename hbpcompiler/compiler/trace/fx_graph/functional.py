"""An exported graph whose operations change nothing in place, as the reader wants it.

`ExportedProgram.run_decompositions` traces the whole graph twice to that end, which takes as long as the export. Most
graphs need little of it: an operation that changes a tensor whose memory nobody else sees is its functional form, and
what torch writes as several operations (reshape, contiguous, batch_norm) is traced by itself. A graph that needs more
goes torch's way.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch.export.graph_signature import TensorArgument
from torch.fx import Graph, GraphModule, Node, map_arg
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import NodeSource, NodeSourceAction
from torch.utils import _pytree as pytree

from hbpcompiler.compiler.trace.fx_graph.functional_forms import functional_form, keeps_dtype
from hbpcompiler.compiler.trace.fx_graph.written_views import Anew, memory_of
from hbpcompiler.rules.shared.torch_operations import CLONE, COPIES, WRITTEN_OUT

COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


class _NeedsAllError(Exception):
    """What only torch's own way can write."""


def functional(program: Any) -> Any:
    """An ExportedProgram by operations that change nothing, composites kept whole where torch keeps them."""
    return taken_apart(program, {})


def taken_apart(program: Any, table: Mapping[Any, Callable[..., Any]]) -> Any:
    """The same, with the operations of the table, by overload, in pieces."""
    try:
        return _written(program, table)
    except Exception:  # _NeedsAllError; whatever else goes wrong, torch says in its own way
        with warnings.catch_warnings():  # of what torch itself will no longer do
            warnings.simplefilter("ignore", FutureWarning)
            return program.run_decompositions(dict(table))


def _written(program: Any, table: Mapping[Any, Callable[..., Any]]) -> Any:
    _check_no_autocast(program.graph)
    writer = _Writer(table)
    writer.write(program.graph)
    return with_graph(program, writer.graph)


def with_graph(program: Any, graph: Graph) -> Any:
    """The same ExportedProgram of another graph, which puts out the same."""
    outputs: Any = graph.output_node().args[0]
    signature = copy(program.graph_signature)
    signature.output_specs = [replace(spec, arg=TensorArgument(name=node.name))
                              for spec, node in zip(signature.output_specs, outputs, strict=True)]
    found = copy(program)
    found._graph_module = GraphModule(program.graph_module, graph)
    found._graph_signature = signature
    return found


def with_fewer_outputs(program: Any, fewer: int) -> Any:
    """The ExportedProgram, whose graph changes, without its last outputs."""
    graph, found = program.graph, copy(program)
    output = graph.output_node()
    output.args = (tuple(output.args[0][:-fewer]),)
    graph.eliminate_dead_code()
    found._graph_signature = copy(program.graph_signature)
    found._graph_signature.output_specs = program.graph_signature.output_specs[:-fewer]
    return with_graph(found, graph)


def _check_no_autocast(graph: Graph) -> None:
    """Autocast casts what operations read when they run, here in torch's second trace."""
    given = [node.meta.get("val") for node in graph.find_nodes(op="placeholder")]
    kinds = {value.device.type for value in given if isinstance(value, Tensor)} - {"meta"}
    if any(torch.is_autocast_enabled(kind) for kind in kinds):
        raise _NeedsAllError


class _Writer:
    """Copies a graph node by node."""

    def __init__(self, table: Mapping[Any, Callable[..., Any]]) -> None:
        self.table = table
        self.graph = Graph()
        self.values: dict[Node, Any] = {}
        """Node before -> what stands for it at this place of the copy: a node, or several."""
        self.memory: dict[Node, int] = {}
        """Node of the copy -> a number of the memory that it lies in."""
        self.inside: list[set[Node]] = []
        """By this number: the nodes before that lie in it."""
        self.traced: dict[Any, Graph] = {}
        self.kept: dict[Any, bool] = {}
        self.place, self.last_read = 0, dict[Node, int]()
        """Where in the graph before the copy has come to, and where its nodes are read last."""

    def write(self, before: Graph) -> None:
        """Copy all."""
        places = {node: place for place, node in enumerate(before.nodes)}
        self.last_read = {node: max(map(places.__getitem__, node.users), default=-1) for node in places}
        for node, self.place in places.items():
            if node.op == "call_function":
                self._call(node, node.target)
            elif node.op in ("placeholder", "output"):
                self._is(node, self._copy(node, self.values))
            else:
                raise _NeedsAllError
        self.graph.eliminate_dead_code()  # views made anew that a later write makes anew again

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
        elif called in self.table or _is_written_out(called):
            self._is(node, self._written_out(node, called))
        else:
            made = self._copy(node, self.values)
            made.target = COPIES.get(called, called)
            self._is(node, made)

    def _copy(self, node: Node, values: Mapping[Node, Any]) -> Node:
        """A node in the copy, of what stands for its arguments."""
        made = self.graph.node_copy(node, values.__getitem__)
        shared = {self.memory[read] for read in memory_of(made)}
        if not shared:
            shared.add(len(self.inside))
            self.inside.append(set())
        if len(shared) > 1:
            raise _NeedsAllError
        self.memory[made] = shared.pop()
        return made

    def _is(self, node: Node, value: Any) -> None:
        """What stands for a node before from here on."""
        self.values[node] = value
        for part in value if isinstance(value, Sequence) else [value]:
            self.inside[self.memory[part]].add(node)

    def _without_change(self, node: Node, called: Any) -> Any:
        """The functional form of an operation that changes its first argument; what lies in its memory is made anew."""
        target, form = node.args[0], functional_form(called)
        if form is None or not isinstance(target, Node) or target.op == "placeholder":
            raise _NeedsAllError
        key = (form, *map(_like, pytree.tree_leaves((node.args, node.kwargs))))
        if key not in self.kept:
            self.kept[key] = keeps_dtype(node, form)
        if not self.kept[key]:
            raise _NeedsAllError
        before = self.values[target]
        made = self._written_out(node, form) if _is_written_out(form) else self._copy(node, self.values)
        if made is before:  # dropout in eval mode
            return before
        made.target = form if made.target is called else made.target
        memory = self.memory[before]
        lying = [other for other in self.inside[memory] if self.last_read.get(other, self.place) >= self.place]
        shown = [self.values[other] for other in lying]
        is_given = any(other.op == "placeholder" for other in self.inside[memory])
        turns = torch.Tag.inplace_view in called.tags and any(view is not before for view in shown)
        if is_given or turns or any(isinstance(view, Sequence) for view in shown):
            raise _NeedsAllError
        anew = Anew(self.graph, before, made)
        self.values.update(zip(lying, map(anew.__getitem__, shown), strict=True))
        self.inside[memory] = set(lying)
        self.memory.update(dict.fromkeys(anew.known.values(), memory))
        return anew[before]

    def _written_out(self, node: Node, called: Any) -> Any:
        """A composite operation, or one of the table, by its parts."""
        traced, given = self._traced(node, called)
        for place, read in zip(traced.find_nodes(op="placeholder"), given, strict=True):
            self.values[place] = self.values[read]
        if _is_alone(called, traced):
            raise _NeedsAllError
        parts = [part for part in traced.nodes if part.op not in ("placeholder", "output")]
        for part in parts:
            if part.op != "call_function" or "val" not in part.meta:
                raise _NeedsAllError
            part.meta = {**node.meta, "val": part.meta["val"], "from_node": _origin(node)}
            if _is_copy_of_input(part) and _may_alias(called):
                self.values[part] = self.values[part.args[0]]  # dropout in eval mode; torch's trace copies its input
            else:
                self._call(part, part.target)
        result = map_arg(traced.output_node().args[0], self.values.__getitem__)
        for lying in self.inside:
            lying.difference_update(parts)
        return result

    def _traced(self, node: Node, called: Any) -> tuple[Graph, list[Node]]:
        """A call by itself: its graph, and the nodes that it reads; once for calls of tensors that are alike.

        In what the table has a function for composites stay whole, as in a model.
        """
        leaves, form = pytree.tree_flatten((node.args, node.kwargs))
        given = list(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, Node)))

        def traced(run_it: Callable[..., Any], whole: bool) -> Graph:
            def run(*values: Any) -> Any:
                known = dict(zip(given, values, strict=True))
                filled = [known[leaf] if isinstance(leaf, Node) else leaf for leaf in leaves]
                arguments, named = pytree.tree_unflatten(filled, form)
                result = run_it(*arguments, **named)
                return tuple(result) if isinstance(result, tuple) else result  # torch's may have names of its own

            return _trace(run, _apart([read.meta["val"] for read in given]), whole)

        places = [given.index(leaf) for leaf in leaves if isinstance(leaf, Node)]
        key = (called, form, *places, *map(_like, leaves))
        if key not in self.traced:
            found = traced(self.table.get(called, called), whole=called in self.table)
            if called in self.table and _is_alone(called, found):
                found = traced(partial(_opened, called), whole=True)
            self.traced[key] = found
        return self.traced[key], given


def _opened(called: Any, *arguments: Any, **named: Any) -> Any:
    """What a composite calls: torch's table says only that it is one (einsum), and a trace keeps it whole."""
    with torch._C.DisableTorchFunction():
        return called.decompose(*arguments, **named)


def _is_alone(called: Any, traced: Graph) -> bool:
    """Whether a call in pieces is one piece, the call itself."""
    return [part.target for part in traced.nodes
            if part.op not in ("placeholder", "output") and part.target is not operator.getitem] == [called]


def _apart(values: Sequence[Any]) -> list[Any]:
    """The same examples, none of them twice: a trace tells its inputs apart by them."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, Tensor) and any(value is other for other in found):
            if value.is_conj() or value.is_neg():
                raise _NeedsAllError
            with detect_fake_mode([value]) or nullcontext():
                value = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device,
                                            requires_grad=value.requires_grad)
        found.append(value)
    return found


def _trace(run: Callable[..., Any], examples: Sequence[Any], whole: bool) -> Graph:
    """What runs, with composites whole or in pieces."""
    with detect_fake_mode(examples) or nullcontext(), nullcontext() if whole else enable_python_dispatcher():
        return make_fx(run, pre_dispatch=whole)(*examples).graph


def _like(leaf: Any) -> Any:
    """What a trace sees of an argument: of a tensor not its numbers."""
    if not isinstance(leaf, Node):
        return type(leaf), leaf
    value = leaf.meta["val"]
    if not isinstance(value, Tensor):
        return str(value)
    return str((value.shape, value.stride(), value.dtype, value.device, value.requires_grad, value.is_conj()))


def _is_copy_of_input(part: Node) -> bool:
    return part.target is CLONE and part.all_input_nodes[0].op == "placeholder"


def _origin(node: Node) -> list[NodeSource]:
    """What a part comes from (see `source.source_of`)."""
    return node.meta.get("from_node") or [NodeSource(node, "functional", NodeSourceAction.CREATE)]


def _is_written_out(called: Any) -> bool:
    """Whether torch takes an operation apart: a composite one that may be a view, or change a buffer."""
    if not isinstance(called, torch._ops.OpOverload):
        return True  # a functional form of ours
    if called in WRITTEN_OUT:
        return True
    composite = called.has_kernel_for_dispatch_key(COMPOSITE) or COMPOSITE in called.py_kernels
    return composite and (_may_alias(called) or any(argument.alias_info for argument in called._schema.arguments))


def _may_alias(called: Any) -> bool:
    """Whether the schema does not say that the operation may return its input, or change a buffer."""
    return torch.Tag.maybe_aliasing_or_mutating in getattr(called, "tags", ())
