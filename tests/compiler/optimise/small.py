"""Programs of a few lines for the tests of passes, and how they are read."""

import torch
from torch import fx, nn

from hbpcompiler.compiler.optimise.settings import Settings
from hbpcompiler.compiler.program.check import Level, check_program
from hbpcompiler.compiler.program.nodes import called
from hbpcompiler.compiler.program.shapes import annotate
from hbpcompiler.compiler.program.writer import Loop, Writer


def program(write, *names):
    """The graph of `write(writer, *placeholders)`, whose result is a proxy or a tuple of proxies."""
    writer = Writer()
    results = write(writer, *map(writer.placeholder, names))
    writer.graph.output(fx.node.map_aggregate(results, lambda item: item.node if isinstance(item, fx.Proxy) else item))
    check_program(writer.graph, Level.DERIVED)
    return writer.graph


def shaped(graph, *shapes, dtype=torch.float32):
    """The graph with shapes; -1 stands for the number of samples."""
    annotate(graph, lambda batch: [torch.empty([batch if length == -1 else length for length in shape], dtype=dtype,
                                               device="meta") for shape in shapes])
    check_program(graph, Level.SHAPED)
    return graph


def settings(*shapes, dtype=torch.float32, **others):
    """Settings for a program with arguments of these shapes."""
    return Settings(lambda batch: [torch.empty([batch if length == -1 else length for length in shape], dtype=dtype,
                                               device="meta") for shape in shapes], dtype=dtype, **others)


def lines(graph):
    """What each node calls with what, in order: "flatten(x, 0, 1)"; loops with their bodies, indented."""
    found = []
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        found.append(f"{called(node).rpartition('.')[2]}({', '.join(map(str, node.args))})")
        if isinstance(node.target, Loop):
            found += ["  " + line for line in lines(node.target.body)]
    return found


def calls(graph):
    """The bare names of what is called, in order."""
    return [line.partition("(")[0] for line in lines(graph)]


def run(graph, *tensors):
    """What the program makes of these tensors."""
    return fx.GraphModule(nn.Module(), graph)(*tensors)


def loop(graph):
    """The program's only loop, as a node."""
    (node,) = [node for node in graph.nodes if isinstance(node.target, Loop)]
    return node


def total_of(write, chunk=2):
    """A program: the total over chunks of x of what `write(part of x, whole w)` makes, of the shape of w."""

    def written(writer, x, w):
        def body(part):
            part.totals["t"].add_(write(part["x"], part.outer(w)))

        return writer.loop(body, op=None, sliced={"x": x}, chunk=chunk, totals={"t": (3,)})["t"]

    return program(written, "x", "w")
