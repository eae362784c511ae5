"""Programs written by running functions on proxies."""

import torch
from torch import fx

from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.writer import Block, Loop, Writer, added_to, named
from hbpcompiler.rule import Op


def run(writer, *arguments):
    return fx.GraphModule(torch.nn.Module(), writer.graph)(*arguments)


def test_what_functions_do_to_proxies_is_written():
    writer = Writer()
    x = writer.placeholder("x")
    writer.graph.output((torch.tanh(x) * 2).node)
    value = torch.randn(3)
    torch.testing.assert_close(run(writer, value), value.tanh() * 2)


def test_nodes_know_their_block_and_step():
    writer = Writer()
    x = writer.placeholder("x")
    writer.tracer.step = 7
    with writer.block("0: linear", "forward"):
        inside = writer.call(torch.tanh, x)
    outside = writer.call(torch.tanh, x)
    assert inside.node.meta["block"] == Block("0: linear", "forward")
    assert inside.node.meta["step"] == 7
    assert outside.node.meta["block"] is None


def test_a_turns_share_is_added_where_it_is_made_and_needs_no_name():
    writer = Writer()
    total, x = writer.placeholder("total"), writer.placeholder("x")
    share = writer.call(torch.exp, x, hint="squares_ggn_weight")
    writer.call(torch.tanh, x)
    added_to(total, share)
    assert [node.name for node in writer.graph.nodes] == ["total", "x", "exp", "add_", "tanh"]
    assert (meta.hint(share.node), meta.wish(share.node)) == ("", "squares_ggn_weight_turn")
    added_to(total, share)
    assert [node.name for node in writer.graph.nodes][-1] == "add__1"


def test_the_first_wish_for_a_name_counts():
    writer = Writer()
    made = writer.call(torch.tanh, writer.placeholder("x"), hint="bent")
    assert named(made, "other") is made
    assert made.node.meta["hint"] == "bent"


def looped(axis, chunk=2):
    """Totals of squares, and rows of sums, of x [N, K, 3] in chunks along an axis, and its op's `w`, whole."""
    writer = Writer()
    x, w = writer.placeholder("x"), writer.placeholder("w")
    op = Op({"w": w}, {}, {"w": (3,)}, batched=frozenset())

    def body(part):
        rows = (part["x"] * part.op.w).sum(-1)
        part.totals["all"].add_(rows.square().sum())
        if axis == 0:
            part.rows["each"].copy_(rows.sum(1))

    made = writer.loop(body, op=op, sliced={"x": x, "absent": None}, chunk=chunk, totals={"all": ()},
                       rows={"each": ()} if axis == 0 else {}, axis=axis)
    writer.graph.output(tuple(item.node for item in made.values()))
    return writer


def test_a_loop_over_samples_adds_up_and_fills_rows():
    x, w = torch.randn(5, 4, 3), torch.randn(3)
    total, rows = run(looped(0), x, w)
    torch.testing.assert_close(total, (x @ w).square().sum())
    torch.testing.assert_close(rows, (x @ w).sum(1))


def test_a_loop_over_columns():
    x, w = torch.randn(5, 4, 3), torch.randn(3)
    (total,) = run(looped(1, 3), x, w)
    torch.testing.assert_close(total, (x @ w).square().sum())


def test_a_loop_cuts_what_has_samples_and_passes_the_rest_whole():
    (loop,) = [node for node in looped(0).graph.nodes if isinstance(node.target, Loop)]
    accumulators, cut, whole = loop.args
    assert [node.name for node in cut] == ["x"]
    assert [node.name for node in whole] == ["w"]
    assert len(accumulators) == loop.target.totals + loop.target.rows == 2
    holders = [node.name for node in loop.target.body.nodes if node.op == "placeholder"]
    assert [name.split("_")[0] for name in holders] == ["total", "rows", "part", "whole"]


def test_the_same_tensor_is_taken_once():
    writer = Writer()
    x = writer.placeholder("x")

    def body(part):
        part.totals["all"].add_((part["x"] + part.read(x, True) + part.outer(3)).sum())

    writer.loop(body, op=None, sliced={"x": x}, chunk=1, totals={"all": ()})
    (loop,) = [node.target for node in writer.graph.nodes if isinstance(node.target, Loop)]
    assert loop.cut == 1
