"""Stage 1, trace: an ExportedProgram becomes a `Graph`, node by node."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import networkx as nx
import sympy
import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind

from hbpcompiler.compiler.trace.batch import Layout
from hbpcompiler.compiler.trace.fx_graph.numbers import depends_on_batch, plain, rounds_apart, unknown
from hbpcompiler.compiler.trace.graph import (
    Graph,
    N,
    Operation,
    Source,
    Value,
)
from hbpcompiler.compiler.trace.source.source import source_of
from hbpcompiler.errors import ModelError, listing

OF_CONTROL = "control flow or an operation with side effects, which a compiled program cannot follow"
OF_TRANSFORMS = ("calls torch.vmap, which a trace cannot follow; write what it maps for the whole batch, with the "
                 "mapped axis in front, as in x.mean(1) for vmap(lambda one: one.mean(0))(x)")
SPELLED = {"TruncToInt": "int() or math.trunc() of what may be negative", "RoundToInt": "round()",
           "RoundDecimal": "round() to places behind the point", "OpaqueUnaryFn_log": "math.log()",
           "OpaqueUnaryFn_exp": "math.exp()", "OpaqueUnaryFn_log2": "math.log2()",
           "StrictGreaterThan": "comparing (>)", "StrictLessThan": "comparing (<)", "GreaterThan": "comparing (>=)",
           "LessThan": "comparing (<=)", "Equality": "comparing (==)", "Unequality": "comparing (!=)",
           "BitwiseFn_bitwise_and": "&", "BitwiseFn_bitwise_or": "|", "BitwiseFn_bitwise_xor": "^"}
"""torch's functions of sizes as people write them."""


class _Reader:
    """Reads an ExportedProgram node by node into values and operations."""

    def __init__(self, program: Any, model: nn.Module, layout: Layout) -> None:
        self.program = program
        self.model = model
        self.layout = layout
        self.symbols: dict[Any, sympy.Expr] = {}
        self.values: dict[str, Value] = {}
        self.numbers: dict[str, Any] = {}
        self.raw: dict[str, Any] = {}
        """The numbers as torch has them, in floats."""
        self.tuples: dict[str, torch.fx.Node] = {}
        self.inputs: list[Value] = []
        self.state: list[Value] = []
        self.operations: list[Operation] = []
        self.parameters = dict(model.named_parameters())
        self.names = {id(tensor): name for name, tensor in [*model.named_buffers(), *self.parameters.items()]}
        """By the tensor: the first of its names, under which programs ask for it."""
        self.twins = {**dict(model.named_buffers(remove_duplicate=False)),
                      **dict(model.named_parameters(remove_duplicate=False))}

    def read(self) -> Graph:
        placeholders = [node for node in self.program.graph.nodes if node.op == "placeholder"]
        specs = self.program.graph_signature.input_specs
        users = [node for node, spec in zip(placeholders, specs, strict=True) if spec.kind is InputKind.USER_INPUT]
        self._name_batch(users)
        for node, spec in zip(placeholders, specs, strict=True):
            self._placeholder(node, spec)
        for node in self.program.graph.nodes:
            if node.op == "call_function":
                self._call(node)
        outputs = [spec.arg.name for spec in self.program.graph_signature.output_specs
                   if spec.kind is OutputKind.USER_OUTPUT]
        loss, *returned = (self.values[name] for name in outputs)
        inputs, targets = self.inputs[: self.layout.inputs], self.inputs[self.layout.inputs :]
        graph = Graph(inputs, targets, self.state, self.operations, returned, loss)
        return without_dead(graph)

    def _name_batch(self, users: Sequence[torch.fx.Node]) -> None:
        for node in users:
            length = node.meta["val"].shape[0]
            if isinstance(length, int):
                raise ModelError(
                    f"the model works only for batches of {length} as traced: its code fixes the batch size. "
                    "Write it for any batch size (x.shape[0], flatten, -1)"
                )
            self.symbols[length.node.expr] = N
        if len({self.symbols[symbol] for symbol in self.symbols}) > 1:
            raise ModelError("inputs and target must share one batch size")

    def _expression(self, length: Any) -> Any:
        if isinstance(length, int):
            return length
        expression = plain(length.node.expr.subs(self.symbols)) if hasattr(length, "node") else sympy.sympify(length)
        return int(expression) if expression.is_Integer else expression

    def _value(self, node: torch.fx.Node, tensor: Tensor, role: str, key: str = "", trainable: bool = False) -> Value:
        shape = tuple(self._expression(length) for length in tensor.shape)
        value = Value(node.name, shape, tensor.dtype, role, key, trainable)
        self.values[node.name] = value
        return value

    def _source(self, node: torch.fx.Node) -> Source:
        return source_of(node)

    def _placeholder(self, node: torch.fx.Node, spec: Any) -> None:
        tensor = node.meta["val"]
        if not isinstance(tensor, Tensor):
            kind = str(getattr(tensor, "class_fqn", "") or type(tensor).__name__).rpartition(".")[2]
            users = sorted({str(self._source(user)) for user in node.users})
            raise ModelError(listing(f"The model cannot be compiled: an object of class {kind} goes into an operation:",
                                     users, "A program takes tensors alone. Draw random numbers from torch's own "
                                     "generator, without generator=, or outside, and pass them in or keep them in a "
                                     "buffer."))
        if spec.kind is InputKind.USER_INPUT:
            self.inputs.append(self._value(node, tensor, "input", self.layout.names[len(self.inputs)]))
            return
        role = {InputKind.PARAMETER: "parameter", InputKind.BUFFER: "buffer"}.get(spec.kind, "constant")
        path = str(spec.target)
        owner, _, name = path.partition(".")
        if owner == "model" and role != "constant":
            key = self.names[id(self.twins[name])] if name in self.twins else name
            trainable = role == "parameter" and self.parameters[key].requires_grad
        else:
            # The loss's own tensors (class weights) and constants: names that no module path can have.
            key = f"loss:{name.removeprefix('function.')}" if role != "constant" else f"constant:{path}"
            role, trainable = "constant", False
        known = next((value for value in self.state if value.key == key), None)
        if known is not None:
            self.values[node.name] = known
            return
        self.state.append(self._value(node, tensor, role, key, trainable))

    def _call(self, node: torch.fx.Node) -> None:
        value = node.meta.get("val")
        args: Any = node.args  # of getitem: a node and an index
        if node.target is operator.getitem and args[0].name in self.tuples:
            if isinstance(value, Tensor):
                self._operation(node, self.tuples[args[0].name], int(args[1]), value)
        elif isinstance(value, Tensor):
            self._operation(node, node, 0, value)
        elif isinstance(value, tuple | list):
            self.tuples[node.name] = node
        elif value is not None:
            self.numbers[node.name] = self._expression(value)
            if hasattr(value, "node"):
                self.raw[node.name] = value.node.expr.subs(self.symbols)

    def _operation(self, node: torch.fx.Node, call: torch.fx.Node, index: int, value: Tensor) -> None:
        called: Any = call.target  # an OpOverload, in what torch.export gives
        if not isinstance(called, torch._ops.OpOverload):
            name = getattr(called, "__name__", str(called))
            what = OF_TRANSFORMS if "batch_dim" in name else f"becomes {name} in torch's graph, {OF_CONTROL}"
            raise ModelError(f"the model cannot be traced: {self._source(call)} {what}")
        schema = called._schema
        given = {argument.name: item for argument, item in zip(schema.arguments, call.args, strict=False)}
        given |= dict(call.kwargs)
        tensors: dict[str, Value] = {}
        attributes: dict[str, Any] = {}
        for argument in schema.arguments:
            item = given.get(argument.name, argument.default_value if argument.has_default_value() else None)
            attributes[argument.name] = self._argument(argument.name, item, tensors, call)
        attributes = {name: item for name, item in attributes.items() if name not in tensors}
        overload = called._overloadname
        output = self._value(node, value, "result")
        target = schema.name.replace("::", ".")
        self.operations.append(Operation(target, overload, output, tensors, attributes, index, self._source(call)))

    def _number(self, node: torch.fx.Node, user: torch.fx.Node) -> Any:
        number = self.numbers[node.name]
        if getattr(number, "free_symbols", set()) - {N}:
            raise ModelError(
                f"the model cannot be traced: {source_of(node)} makes a number of a tensor's values (item(), int(), "
                "float(), a mask's size), which a compiled program cannot follow; keep it a tensor"
            )
        if depends_on_batch(number) and (function := unknown(number)):
            raise ModelError(f"the model cannot be traced: {self._source(user)} makes a number of the batch's size by "
                             f"{SPELLED.get(function, function)}, which a program does not; write it with + - * / // % "
                             "** alone, as in x.shape[0] / 2")
        if rounded := rounds_apart(self.raw.get(node.name, 0)):
            raise ModelError(f"the model cannot be traced: {self._source(user)} rounds a product of the batch's size "
                             f"and a float, {rounded} with N samples, and for some sizes the float is a little beside "
                             "the whole number that it should be; write it in whole numbers, as x.shape[0] * 29 // 100 "
                             "for floor(0.29 * x.shape[0])")
        return number

    def _argument(self, slot: str, item: Any, tensors: dict[str, Value], user: torch.fx.Node) -> Any:
        if isinstance(item, torch.fx.Node):
            if item.name in self.values:
                tensors[slot] = self.values[item.name]
                return slot
            return self._number(item, user)
        if isinstance(item, list | tuple):
            return [self._argument(f"{slot}.{position}", part, tensors, user) for position, part in enumerate(item)]
        return item


class PieceReader(_Reader):
    """Reads what torch.vmap makes of one operation over a sample axis of length one, in place of that operation."""

    def __init__(self, operation: Operation, arguments: Sequence[Value]) -> None:
        self.operation, self.arguments = operation, arguments
        self.symbols, self.values, self.numbers = {}, {}, {}
        self.raw: dict[str, Any] = {}
        self.tuples: dict[str, torch.fx.Node] = {}
        self.operations: list[Operation] = []

    def pieces(self, traced: torch.fx.GraphModule) -> tuple[list[Operation], Value]:
        """The operations, and the value that stands for the operation's result."""
        holders = [node for node in traced.graph.nodes if node.op == "placeholder"]
        self.values.update({node.name: value for node, value in zip(holders, self.arguments, strict=True)})
        for node in traced.graph.nodes:
            if node.op == "call_function":
                self._call(node)
        (output,) = [node for node in traced.graph.nodes if node.op == "output"]
        return self.operations, self.values[output.args[0].name]

    def _value(self, node: torch.fx.Node, tensor: Tensor, role: str, key: str = "", trainable: bool = False) -> Value:
        parents = [*node.all_input_nodes]
        parents += [parent for several in parents if several.name in self.tuples for parent in several.all_input_nodes]
        shared = any(self.values[parent.name].shared for parent in parents if parent.name in self.values)
        name = f"{self.operation.name}_{node.name}"
        value = Value(name, tuple(tensor.shape), tensor.dtype, role, key, trainable, shared)
        self.values[node.name] = value
        return value

    def _source(self, node: torch.fx.Node) -> Source:
        return self.operation.source


def without_dead(graph: Graph) -> Graph:
    """Only what loss and output need; counters, asserts and shape arithmetic are gone."""
    network = graph.network()
    ends = [graph.loss.name, *(output.name for output in graph.outputs)]
    needed = set(ends).union(*[nx.ancestors(network, name) for name in ends])
    operations = [operation for operation in graph.operations if operation.name in needed]
    state = [value for value in graph.state if value.name in needed or value.trainable]
    return replace(graph, state=state, operations=operations)


def read(program: Any, model: nn.Module, layout: Layout) -> Graph:
    """The `Graph` of an ExportedProgram made by `export` for batches of this layout."""
    return _Reader(program, model, layout).read()


def constants(program: Any) -> Mapping[str, Tensor]:
    """Tensors that the trace found outside the model's and the loss's parameters and buffers, by state name."""
    return {f"constant:{name}": tensor for name, tensor in program.constants.items() if isinstance(tensor, Tensor)}


def loss_tensors(loss: Callable[..., Tensor]) -> Mapping[str, Tensor]:
    """The loss's own parameters and buffers (class weights), by state name."""
    if not isinstance(loss, nn.Module):
        return {}
    held = [*loss.named_parameters(remove_duplicate=False), *loss.named_buffers(remove_duplicate=False)]
    return {f"loss:{name}": tensor for name, tensor in held}
