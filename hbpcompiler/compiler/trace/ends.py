"""Where derivatives begin: at the loss, at an output of the model, or at both; and at curved operations inside.

A program that asks for nothing of the loss needs no rules for it: only what leads to the output is differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hbpcompiler.compiler.trace.graph import Graph, Value
from hbpcompiler.errors import ModelError, listing


@dataclass(frozen=True)
class Ends:
    """Whether derivatives begin at the loss, whether at the model's output, and whether inside the model too, at each
    operation that is curved: then what is taken apart must keep its second derivatives."""

    loss: bool = True
    output: bool = False
    inside: bool = False


AT_LOSS = Ends()


def with_ends(graph: Graph, ends: Ends) -> Graph:
    """The graph whose derivatives begin there. Of several outputs that depend on trained parameters it is the one that
    the loss takes; ModelError if there is no such one."""
    if not ends.output:
        return graph
    return replace(graph, end=_output(graph).name, has_loss_streams=ends.loss)


def _output(graph: Graph) -> Value:
    trained = {value.name: value for value in graph.outputs if value.name in graph.trained and value.role == "result"}
    read = {value.name for operation in graph.operations if operation.source.in_loss and operation.name in graph.active
            for value in operation.tensors.values()}
    taken = [value for name, value in trained.items() if name in read]
    found = list(trained.values()) if len(trained) == 1 else taken
    if len(found) == 1:
        return found[0]
    if not trained:
        raise ModelError("jacobian: no output of the model depends on a trainable parameter by way of floating-point "
                         "numbers")
    shapes = [f"{value.name} of shape {list(value.shape)}" + (", which the loss takes" if value in taken else "")
              for value in trained.values()]
    raise ModelError(listing("jacobian is the derivative of one output, and the model returns several that depend on "
                             "trained parameters:", shapes,
                             "Let the model return one of them, or the loss take one."))
