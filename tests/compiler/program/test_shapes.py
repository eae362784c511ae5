"""Symbolic shapes, from two runs on meta tensors."""

import torch

from hbpcompiler.compiler.program.shapes import annotate, arguments, interpret, resized
from hbpcompiler.compiler.program.writer import Loop, Writer
from hbpcompiler.compiler.trace.graph import N
from tests.hand_made import parameter, value

INPUTS = {"x": value("x", N, 3, role="input")}
STATE = [parameter("w", 2, 3)]


def program():
    """state, x -> lines whose shapes depend on N in every way there is, and a loop."""
    writer = Writer()
    state, x = writer.placeholder("state"), writer.placeholder("x")
    w = state["w"]
    made = {"product": x @ w.t(), "stacked": torch.cat([x, x, w], 0), "gram": x @ x.t(), "weight": w * 2}
    made["pieces"] = writer.call(torch.split, x, 1, 1)

    def body(part):
        part.totals["all"].add_(part["x"].sum(0))

    made["loop"] = writer.loop(body, op=None, sliced={"x": x}, chunk=4, totals={"all": (3,)})["all"]
    writer.graph.output(tuple(proxy.node for proxy in made.values()))
    return writer.graph, {name: proxy.node for name, proxy in made.items()}


def test_lengths_are_texts_in_n():
    graph, made = program()
    annotate(graph, lambda batch: arguments(graph, INPUTS, STATE, batch))
    assert made["product"].meta["shape"] == ("N", "2")
    assert made["stacked"].meta["shape"] == ("2*N + 2", "3")
    assert made["gram"].meta["shape"] == ("N", "N")
    assert made["weight"].meta["shape"] == ("2", "3")
    assert made["weight"].meta["dtype"] is torch.float32
    assert made["pieces"].meta["results"] == 3


def test_a_loops_body_counts_its_chunk():
    graph, _ = program()
    annotate(graph, lambda batch: arguments(graph, INPUTS, STATE, batch))
    (loop,) = [node.target for node in graph.nodes if isinstance(node.target, Loop)]
    total, part = [node for node in loop.body.nodes if node.op == "placeholder"]
    assert total.meta["shape"] == ("3",)
    assert part.meta["shape"] == ("n", "3")


def test_values_are_kept_to_their_last_reader_only():
    graph, made = program()
    seen = dict.fromkeys(made)
    for node, found in interpret(graph, arguments(graph, INPUTS, STATE), lambda *loop: None):
        seen |= {name: found for name, own in made.items() if own is node}
    assert tuple(seen["product"].shape) == (5, 2)
    assert seen["product"].is_meta


def test_resized():
    assert tuple(resized(torch.empty(5, 3), 1, 7).shape) == (5, 7)


def test_a_chunk_inside_a_chunk_is_told_from_a_length_of_eight():
    """In the second of two runs chunks are eight long, as w is: n rows of columns k are not 8 rows."""
    writer = Writer()
    state, x = writer.placeholder("state"), writer.placeholder("x")
    w, made = state["w"], {}

    def body(part):
        whole = part.outer(w)
        made["samples"] = part["x"] + 1

        def inner(piece):
            made["outer"], made["fixed"] = piece.outer(made["samples"]) + 0, piece.outer(whole) + 0
            made["columns"], made["joined"] = piece["x"] + 2, piece["x"].flatten(0, 1)

        part.writer.loop(inner, op=None, sliced={"x": part["x"]}, chunk=2, totals={}, axis=1)

        def again(piece):
            made["few"], made["around"] = piece["x"] * 2, piece.outer(made["samples"]) * 2
            piece.outer(part.totals["t"]).add_(made["few"].sum(0))

        part.writer.loop(again, op=None, sliced={"x": part["x"]}, chunk=2, totals={})

    total = writer.loop(body, op=None, sliced={"x": x}, chunk=4, totals={"t": (8, 8)})["t"]
    writer.graph.output((total.node,))
    inputs = {"x": value("x", N, 8, 8, role="input")}
    annotate(writer.graph, lambda batch: arguments(writer.graph, inputs, [parameter("w", 8, 8)], batch))
    shapes = {name: proxy.node.meta["shape"] for name, proxy in made.items()}
    assert shapes == {
        "samples": ("n", "8", "8"), "fixed": ("8", "8"), "outer": ("n", "8", "8"), "columns": ("n", "k", "8"),
        "joined": ("n*k", "8"), "few": ("n", "8", "8"), "around": ("outer n", "8", "8"),
    }
