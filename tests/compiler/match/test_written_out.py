"""What is written out step by step is said, on a graph written by hand."""

from dataclasses import replace

from hbpcompiler.compiler.match.written_out import notes
from hbpcompiler.compiler.trace.graph import N
from tests.hand_made import graph, operation, value


def made(target, whole, namespace="aten"):
    x, y = value("x", N, 3, role="input"), value("y", N, 3)
    found = operation(target, y, self=x)
    source = replace(found.source, module="reader", whole=whole)
    return graph([replace(found, target=f"{namespace}.{target}", source=source)], inputs=[x], outputs=[y])


def test_a_piece_of_an_operation_that_is_not_there_itself():
    (said,) = notes(made("tanh", "hbpcompiler.gru"))
    assert said.endswith("module 'reader'.")


def test_all_others_are_not_mentioned():
    assert notes(made("tanh", "aten.tanh")) == []
    assert notes(made("gru_steps", "hbpcompiler.gru", "hbpcompiler")) == []
