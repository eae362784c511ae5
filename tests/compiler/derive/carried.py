"""One step of a backward pass carried out on tensors, on a graph written by hand."""

import torch
from torch import fx

from hbpcompiler import schemes
from hbpcompiler.compiler.derive.carry_out import backward_pass
from hbpcompiler.compiler.match.operation.bind import bind
from hbpcompiler.compiler.plan.plan import plan
from hbpcompiler.compiler.program.writer import Writer
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.options import check_options
from hbpcompiler.quantities import closings_for
from tests.hand_made import matched, mlp

SAMPLES = 3
GRAPH = mlp()
MATCHED = matched(GRAPH)
LINEAR, TANH, LAST, LOSS = GRAPH.operations
HIDDEN, BENT, OUTPUT = LINEAR.output, TANH.output, LAST.output


def values():
    """A tensor for each value of the graph; the loss's own is nothing that a step reads."""
    torch.manual_seed(0)
    given = {value.name: torch.randn([SAMPLES if length == N else length for length in value.shape])
             for value in (*GRAPH.batch, *GRAPH.state)}
    given["hidden"] = given["x"] @ given["a.weight"].t() + given["a.bias"]
    given["bent"] = given["hidden"].tanh()
    given["output"] = given["bent"] @ given["b.weight"].t()
    return {**given, "loss": (given["output"] - given["y"]).square().mean()}


def planned(*quantities, curvature=schemes.HESSIAN, mc_samples=1):
    asked = check_options(list(quantities), "python", None, mc_samples, None, curvature)
    return plan(MATCHED, schemes.kept(curvature, closings_for(asked.quantities)), asked)


def carried_out(step, columns=(), signs=(), made=None):
    """(columns by (value, piece), signs by piece, closings by (parameter or group, kind)) after this step.

    `columns` {(value, piece): tensor} and `signs` {piece: tensor} are there before; `made` is the plan.
    """
    writer = Writer()
    tensors = values()
    inputs = {**tensors, **{f"c{i}": item for i, item in enumerate(dict(columns).values())},
              **{f"s{i}": item for i, item in enumerate(dict(signs).values())}}
    proxies = {name: writer.placeholder(name.replace(".", "_")) for name in inputs}
    ops = {own.name: bind(own, lambda slot, own=own: proxies[own.name if slot == "output" else own.tensors[slot].name],
                          GRAPH.active) for own in GRAPH.operations}
    state = backward_pass(MATCHED, made or planned("grad"), writer, ops, SAMPLES,
                          columns={key: proxies[f"c{i}"] for i, key in enumerate(dict(columns))},
                          signs={key: proxies[f"s{i}"] for i, key in enumerate(dict(signs))})
    state.parameters = {value.key: proxies[value.name] for value in GRAPH.state}
    state.carry_out(step)
    closed = {(key, closing.kind): made for found in (state.closed, state.totals) for key, closings in found.items()
              for closing, made in closings.items()}
    results = (state.columns, state.signs, closed)
    writer.graph.output(fx.node.map_aggregate(results, lambda item: item.node if isinstance(item, fx.Proxy) else item))
    return fx.GraphModule(torch.nn.Module(), writer.graph)(*inputs.values())
