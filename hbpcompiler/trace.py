"""Stage 1, trace: a model, a loss and a batch become a `Graph` by torch.export with a symbolic batch size."""

from __future__ import annotations

import io
import keyword
import linecache
import logging
import operator
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import MethodType
from typing import Any

import networkx as nx
import sympy
import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import graph as fx_graph

import hbpcompiler.rules
from hbpcompiler.errors import BatchDoesNotFitError, ModelError, UnsupportedOpError, listing
from hbpcompiler.graph import Graph, N, Operation, Source, Value
from hbpcompiler.rule import ModuleRule

TRACED_BATCH = 7
"""torch.export specialises a batch of one, and a prime is unlikely to equal another length of the model."""
_LIBRARY = (str(Path(torch.__file__).parent), str(Path(__file__).parent), *hbpcompiler.rules.__path__)
"""Frames below these folders are not the user's code."""
_NOISY = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor", "torch.export", "torch._export")
"""Loggers that print pages before an error that we turn into one sentence."""


class _Loss(nn.Module):
    """Makes a loss, module or plain function, recognisable in the traced graph."""

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = loss

    def forward(self, output: Any, target: Any) -> Any:
        return self.function(output, target)


class _Whole(nn.Module):
    """Model and loss as one module, so that one graph holds both."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self.loss = _Loss(loss)

    def forward(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(*batch[:-1])
        if not isinstance(output, Tensor):
            raise ModelError(
                f"the model must return one tensor, but returned {type(output).__name__}; wrap it in a module whose "
                "forward picks the tensor that the loss takes"
            )
        loss = self.loss(output, batch[-1])
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            what = f"a tensor of shape {_shown(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ModelError(
                f"the loss must return one number (a tensor without axes), but returned {what}; "
                "use reduction='mean' or 'sum'"
            )
        return loss, output


def _shown(shape: Sequence[Any]) -> str:
    return "[" + ", ".join(str(length) if isinstance(length, int) else "N" for length in shape) + "]"


def export(model: nn.Module, loss: Callable[..., Tensor], inputs: Sequence[Tensor], target: Tensor,
           modules: Mapping[type[nn.Module], ModuleRule] | None = None) -> Any:
    """The ExportedProgram of (inputs, target) -> (loss, output), functional, composites kept whole.

    `modules` are traced through their rules' forward. Raises ModelError where torch.export cannot follow the model,
    naming module and line.
    """
    batch = tuple(tensor[:1].detach().expand(TRACED_BATCH, *tensor.shape[1:]).clone() for tensor in (*inputs, target))
    dynamic = ({0: torch.export.Dim.DYNAMIC},) * len(batch)
    whole = _Whole(model, loss)
    whole.training = model.training  # not train(): that would reach into the user's modules
    with warnings.catch_warnings(), _quiet(), quoted_names(), _equivalents(model, modules or {}):
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(whole, batch, dynamic_shapes=(dynamic,), strict=False)
            _check_gradients_stay_on(program)
            return program.run_decompositions({})
        except (ModelError, UnsupportedOpError):
            raise
        except Exception as error:
            raise _untraceable(model, error) from error


def _check_gradients_stay_on(program: Any) -> None:
    """torch.no_grad() inside a model would vanish from the graph and its values be differentiated: refuse it.

    Where no trainable parameter comes in (rotary embeddings of positions) it changes nothing.
    """
    trained = _trained(program)
    found = [node for node in program.graph.nodes if node.op == "call_function" and node.args
             and "set_grad_enabled" in str(node.target) and node.args[0] is False
             and trained.intersection(node.all_input_nodes)]
    if found:
        places = [str(_source(inner)) for node in found for inner in _nodes_of(program, node)][:5]
        raise ModelError(listing("torch.no_grad() inside the model or the loss is not supported; use x.detach():",
                                 sorted(set(places))))


def _trained(program: Any) -> set[torch.fx.Node]:
    """What depends on a trainable parameter by way of floating-point tensors."""
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    found: set[torch.fx.Node] = set()
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder":
            spec = specs[node.name]
            trained = spec.kind is InputKind.PARAMETER and program.state_dict[spec.target].requires_grad
        else:
            exact = isinstance(value, Tensor) and not value.is_floating_point()
            trained = bool(found.intersection(node.all_input_nodes)) and not exact
        if trained:
            found.add(node)
    return found


def _nodes_of(program: Any, call: torch.fx.Node) -> list[torch.fx.Node]:
    """The operations of the block that a higher-order call runs; the call itself if they cannot be seen."""
    for argument in call.args:
        if isinstance(argument, torch.fx.Node) and argument.op == "get_attr":
            block = getattr(program.graph_module, str(argument.target), None)
            if isinstance(block, torch.fx.GraphModule):
                return [node for node in block.graph.nodes if node.op == "call_function"]
    return [call]


@contextmanager
def quoted_names() -> Iterator[None]:
    """torch.fx writes module names unquoted into code that it runs, so a name could be code: quote them meanwhile."""
    original = fx_graph._format_target

    def quoted(base: str, target: str) -> str:
        for name in target.split("."):
            plain = name.isidentifier() and not keyword.iskeyword(name)
            base = f"{base}.{name}" if plain else f"getattr({base}, {name!r})"
        return base

    fx_graph._format_target = quoted
    try:
        yield
    finally:
        fx_graph._format_target = original


@contextmanager
def _equivalents(model: nn.Module, rules: Mapping[type[nn.Module], ModuleRule]) -> Iterator[None]:
    """Meanwhile the modules that have a rule run the rule's forward; all that are refused are named at once."""
    found = [(path, module) for path, module in model.named_modules() if type(module) in rules]
    findings = [f"module {path!r} ({type(module).__name__}): {reason}" for path, module in found
                if (reason := rules[type(module)].refuse(module)) is not None]
    if findings:
        raise UnsupportedOpError(listing("The model cannot be compiled:", findings))
    before = [module.__dict__.get("forward") for _, module in found]
    try:
        for _, module in found:
            module.__dict__["forward"] = MethodType(rules[type(module)].forward, module)
        yield
    finally:
        for (_, module), own in zip(found, before, strict=True):
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own


@contextmanager
def _quiet() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            yield
        sys.stderr.write(printed.getvalue())  # without an error it is the user's
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _untraceable(model: nn.Module, error: Exception) -> ModelError:
    """Say where in the user's code torch.export gave up, and why."""
    place = _place(model, error)
    text = str(error).strip()
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        return ModelError(
            f"the model cannot be traced{place}: control flow depends on the values of tensors, which a compiled "
            "program cannot follow; use torch.where, or compute the branch outside the model"
        )
    if "onstrain" in text or "specialized" in text or "pecialization" in text:
        return ModelError(
            f"the model cannot be traced{place}: the code fixes the batch size (a literal in view or reshape, a loop "
            "over samples); write it for any batch size"
        )
    reason = f"{type(error).__name__}: {text.splitlines()[0][:300] if text else ''}"
    if type(error) in (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
        return BatchDoesNotFitError(f"the batch does not go through the model{place}: {reason}")
    return ModelError(f"the model cannot be traced{place}: {reason}")


def _place(model: nn.Module, error: BaseException) -> str:
    """The innermost module on the error's stack, and the innermost line of the user's own."""
    paths = {id(module): path for path, module in model.named_modules()}
    module, line = "", ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if isinstance(owner, nn.Module) and id(owner) in paths:
            module = f" at module {paths[id(owner)]!r} ({type(owner).__name__})"
            if not code.co_filename.startswith(_LIBRARY):
                source = linecache.getline(code.co_filename, number).strip()
                line = f", {code.co_filename}:{number}: {source}"
    return module + line


class _Reader:
    """Reads an ExportedProgram node by node into values and operations."""

    def __init__(self, program: Any, model: nn.Module) -> None:
        self.program = program
        self.model = model
        self.symbols: dict[Any, sympy.Expr] = {}
        self.values: dict[str, Value] = {}
        self.numbers: dict[str, Any] = {}
        self.tuples: dict[str, torch.fx.Node] = {}
        self.inputs: list[Value] = []
        self.state: list[Value] = []
        self.operations: list[Operation] = []
        self.parameters = dict(model.named_parameters())
        self.names = {id(parameter): name for name, parameter in self.parameters.items()}
        self.twins = dict(model.named_parameters(remove_duplicate=False))

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
        loss, output = (self.values[name] for name in outputs)
        graph = Graph(self.inputs[:-1], self.inputs[-1], self.state, self.operations, output, loss)
        return _without_dead(graph)

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
        expression = length.node.expr.subs(self.symbols) if hasattr(length, "node") else sympy.sympify(length)
        return int(expression) if expression.is_Integer else expression

    def _value(self, node: torch.fx.Node, tensor: Tensor, role: str, key: str = "", trainable: bool = False) -> Value:
        shape = tuple(self._expression(length) for length in tensor.shape)
        value = Value(node.name, shape, tensor.dtype, role, key, trainable)
        self.values[node.name] = value
        return value

    def _placeholder(self, node: torch.fx.Node, spec: Any) -> None:
        tensor = node.meta["val"]
        if spec.kind is InputKind.USER_INPUT:
            self.inputs.append(self._value(node, tensor, "input", str(len(self.inputs))))
            return
        role = {InputKind.PARAMETER: "parameter", InputKind.BUFFER: "buffer"}.get(spec.kind, "constant")
        path = str(spec.target)
        owner, _, name = path.partition(".")
        if owner == "model" and role != "constant":
            key = self.names[id(self.twins[name])] if role == "parameter" else name
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

    def _operation(self, node: torch.fx.Node, call: torch.fx.Node, index: int, value: Tensor) -> None:
        called: Any = call.target  # an OpOverload, in what torch.export gives
        schema = called._schema
        given = {argument.name: item for argument, item in zip(schema.arguments, call.args, strict=False)}
        given |= dict(call.kwargs)
        tensors: dict[str, Value] = {}
        attributes: dict[str, Any] = {}
        for argument in schema.arguments:
            item = given.get(argument.name, argument.default_value if argument.has_default_value() else None)
            attributes[argument.name] = self._argument(argument.name, item, tensors)
        attributes = {name: item for name, item in attributes.items() if name not in tensors}
        overload = called._overloadname
        output = self._value(node, value, "result")
        target = schema.name.replace("::", ".")
        self.operations.append(Operation(target, overload, output, tensors, attributes, index, _source(call)))

    def _number(self, node: torch.fx.Node) -> Any:
        number = self.numbers[node.name]
        if getattr(number, "free_symbols", set()) - {N}:
            raise ModelError(
                f"the model cannot be traced: {_source(node)} makes a number of a tensor's values (item(), int(), "
                "float(), a mask's size), which a compiled program cannot follow; keep it a tensor"
            )
        return number

    def _argument(self, slot: str, item: Any, tensors: dict[str, Value]) -> Any:
        if isinstance(item, torch.fx.Node):
            if item.name in self.values:
                tensors[slot] = self.values[item.name]
                return slot
            return self._number(item)
        if isinstance(item, list | tuple):
            return [self._argument(f"{slot}.{position}", part, tensors) for position, part in enumerate(item)]
        return item


FRAME = re.compile(r'File "(?P<file>[^"\n]+)", line (?P<line>\d+), in [^\n]+\n\s+(?P<code>[^\n]+)')


def _source(node: torch.fx.Node) -> Source:
    """The innermost module, and the innermost line of code outside torch and this library."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = (str(stack[-1][0]), stack[-1][1]) if stack else ("", "")
    frames = [match.groupdict() for match in FRAME.finditer(node.meta.get("stack_trace") or "")]
    frames = [frame for frame in frames if not frame["file"].startswith(_LIBRARY)]
    frame: dict[str, Any] = frames[-1] if frames else {"file": "", "line": 0, "code": ""}
    in_loss = path == "loss" or path.startswith("loss.")
    owner, _, module = path.partition(".")
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    module = "" if owner != "model" or "@" in module else module
    return Source(module, "" if in_loss else kind, frame["file"], int(frame["line"]), frame["code"].strip(), in_loss,
                  _whole_operation(node))


def _whole_operation(node: torch.fx.Node) -> str:
    """The operation as exported, before any decomposition; "" if it is unknown."""
    origin = (node.meta.get("from_node") or [None])[0]
    while origin is not None and origin.from_node:
        origin = origin.from_node[0]
    return str(origin.target).rpartition(".")[0] if origin is not None else ""


def _without_dead(graph: Graph) -> Graph:
    """Only what loss and output need; counters, asserts and shape arithmetic are gone."""
    network = graph.network()
    ends = [graph.loss.name, graph.output.name]
    needed = set(ends).union(*[nx.ancestors(network, name) for name in ends])
    operations = [operation for operation in graph.operations if operation.name in needed]
    state = [value for value in graph.state if value.name in needed or value.trainable]
    makers = {operation.name: operation for operation in operations}
    return Graph(graph.inputs, graph.target, state, operations, graph.output, graph.loss, makers)


def read(program: Any, model: nn.Module) -> Graph:
    """The `Graph` of an ExportedProgram made by `export`."""
    return _Reader(program, model).read()


def constants(program: Any, loss: Callable[..., Tensor]) -> Mapping[str, Tensor]:
    """Tensors that are in no state_dict of the model: the loss's buffers and literal tensors, by state name."""
    found = {f"constant:{name}": tensor for name, tensor in program.constants.items() if isinstance(tensor, Tensor)}
    if isinstance(loss, nn.Module):
        named = [*loss.named_parameters(), *loss.named_buffers()]
        found |= {f"loss:{name}": tensor.detach() for name, tensor in named}
    return found
