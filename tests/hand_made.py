"""Graphs written by hand: values and operations of a network, without a trace."""

import torch

from hbpcompiler.compiler.match.losses.endings import ending_of
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.trace.graph import Graph, N, Operation, Source, Value
from hbpcompiler.rule.registry import builtin


def value(name, *shape, role="result", dtype=torch.float32, **more):
    """A value; `shape` may hold N. What is no result has its own name as key."""
    return Value(name, shape, dtype, role, key="" if role == "result" else name, **more)


def parameter(name, *shape):
    return value(name, *shape, role="parameter", trainable=True)


def operation(target, output, attributes=(), /, *, overload="", in_loss=False, module=None, **tensors):
    """A call that makes `output`, in a module that is named after it or as said, or in the loss."""
    source = Source("" if in_loss else module or output.name, in_loss=in_loss)
    return Operation(f"aten.{target}", overload, output, tensors, dict(attributes), 0, source)


def graph(operations, state=(), inputs=(), targets=(), outputs=None):
    """The graph of these operations, the last of which makes the loss; the one before it the model's output."""
    loss = operations[-1].output
    made = [operation.output for operation in operations[:-1]]
    return Graph(list(inputs), list(targets), list(state), list(operations), outputs or made[-1:], loss)


def mlp():
    """x [N, 3] -> linear 4 -> tanh -> linear 2 -> mean squared error against y."""
    x, y = value("x", N, 3, role="input"), value("y", N, 2, role="target")
    w1, b1, w2 = parameter("a.weight", 4, 3), parameter("a.bias", 4), parameter("b.weight", 2, 4)
    hidden, bent = value("hidden", N, 4), value("bent", N, 4)
    output, loss = value("output", N, 2), value("loss")
    return graph([
        operation("linear", hidden, input=x, weight=w1, bias=b1),
        operation("tanh", bent, self=hidden),
        operation("linear", output, {"bias": None}, input=bent, weight=w2),
        operation("mse_loss", loss, {"reduction": 1}, in_loss=True, self=output, target=y),
    ], state=[w1, b1, w2], inputs=[x], targets=[y])


def rules_of(graph):
    """The rule of each operation, by its name."""
    return {operation.name: builtin().find(operation.target, operation.overload) for operation in graph.operations}


def matched(graph):
    """What match would hand on, the values under their own names."""
    rules = rules_of(graph)
    names = {value.name: value.name for value in graph.values()}
    return Matched(graph, rules, graph.active, ending_of(graph, rules, {}), names)
