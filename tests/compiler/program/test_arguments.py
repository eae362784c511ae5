"""A program's arguments as meta tensors, for any batch size."""

import torch
from torch import fx

from hbpcompiler.compiler.program.program import Program
from hbpcompiler.compiler.trace.graph import N, Value


def test_arguments_come_in_the_programs_order_with_the_state_as_one():
    graph = fx.Graph()
    for name in ("state", "x"):
        graph.placeholder(name)
    weight = Value("w", (3, 2), torch.float64, "parameter", "layer.weight", trainable=True)
    program = Program(graph, [Value("x", (N, 2), torch.float32, "input", "x")], [weight])
    state, x = program.stand_ins(5)
    assert (x.shape, x.dtype, x.device.type) == ((5, 2), torch.float32, "meta")
    assert {key: tuple(value.shape) for key, value in state.items()} == {"layer.weight": (3, 2)}
