"""Graphs in which a mask picks rows, with all rows kept."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hbpcompiler.compiler.trace.fx_graph.alike_nodes import AlikeNodes
from hbpcompiler.compiler.trace.fx_graph.by_name import axes_of, chosen_by, given_to, in_order
from hbpcompiler.compiler.trace.fx_graph.functional import functional
from hbpcompiler.compiler.trace.rows.picked import whole_rows
from hbpcompiler.compiler.trace.rows.places import Places, of_places, placed, places_of
from hbpcompiler.compiler.trace.rows.rows import NotWholeError, Writer, are_alike
from hbpcompiler.compiler.trace.rows.same_masks import SameMasks
from tests.selection import few

aten = torch.ops.aten


class Loss(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, o, y):
        return self.function(o, y)


def exported(function, o, y):
    any_size = {0: torch.export.Dim.DYNAMIC}
    return functional(torch.export.export(Loss(function), (o, y), dynamic_shapes=(any_size, any_size), strict=False))


def targets(program):
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


def run(program, o, y):
    return torch.fx.Interpreter(program.graph_module).run(o, y)[0]


LOSSES = {
    "labels": lambda o, y: F.cross_entropy(o[y > 0], y[y > 0]),
    "no reduction": lambda o, y: F.cross_entropy(o[y > 0], y[y > 0], reduction="none").square().sum(),
    "sum along axes": lambda o, y: (o[y > 0].sum(0) ** 2).sum() + o[y > 0].mean((0, 1)) + o[y > 0].sum(-1).mean(),
    "number": lambda o, y: 2 * o[y > 0].sum() / (1 + 3 * o[y > 0].shape[0]),
    "put": lambda o, y: torch.zeros_like(o).index_put((y > 0,), o[y > 0].exp()).sum(),
    "places": lambda o, y: o.index_select(0, (y > 0).nonzero(as_tuple=True)[0]).prod(1).sum(),
}


@few(2, "further cases of one kind")
@pytest.mark.parametrize("name", LOSSES)
def test_the_graph_is_of_all_rows_and_makes_the_same(name):
    o, y = torch.randn(7, 3), torch.tensor([0, 1, 2, 0, 1, 2, 1])
    program = whole_rows(exported(LOSSES[name], o, y))
    assert not {aten.index.Tensor, aten.nonzero.default, aten.index_select.default} & set(targets(program))
    for other in (y, torch.zeros_like(y).index_fill(0, torch.tensor([3]), 1)):
        torch.testing.assert_close(run(program, o, other), LOSSES[name](o, other))


UNCHANGED = {
    "another order": lambda o, y: (o[y > 0].flip(0) * o[y > 0]).sum(),
    "two masks": lambda o, y: torch.cat([o[y > 0], o[y == 0]]).square().sum(),
    "running sum": lambda o, y: o[y > 0].cumsum(0).square().sum(),
    "drawn": lambda o, y: F.dropout(o[y > 0]).sum(),
    "as an argument": lambda o, y: torch.arange(o[y > 0].shape[0]).sum() * o.sum(),
    "product of all with all": lambda o, y: (o[y > 0] @ o[y > 0].T).sum(),
    "no mask": lambda o, y: o.square().sum() * y.sum(),
}


@few(3, "further cases of one kind")
@pytest.mark.parametrize("name", UNCHANGED)
def test_what_needs_the_number_of_rows_stays(name):
    program = exported(UNCHANGED[name], torch.randn(7, 3), torch.tensor([0, 1, 2, 0, 1, 2, 1]))
    assert whole_rows(program) is program


def test_masks_that_are_drawn_are_not_the_same():
    def drawn(o, y):
        return o[torch.rand_like(y) > 0.5].sum() + 2 * o[torch.rand_like(y) > 0.5].sum()

    program = whole_rows(exported(drawn, torch.ones(7, 3), torch.zeros(7)))
    torch.manual_seed(0)
    expected = drawn(torch.ones(70, 3), torch.zeros(70))
    torch.manual_seed(0)
    torch.testing.assert_close(run(program, torch.ones(70, 3), torch.zeros(70)), expected)


def graph_of(*masks):
    graph = torch.fx.Graph()
    nodes = []
    for number, mask in enumerate(masks):
        nodes.append(graph.placeholder(f"mask_{number}"))
        nodes[-1].meta["val"] = mask
    return graph, nodes


def test_an_index_is_a_mask_or_columns_of_its_places():
    _, (mask, other, numbers) = graph_of(*(torch.ones(4, 3, dtype=torch.bool) for _ in range(2)), torch.ones(4))
    same = {mask: 0, other: 1, numbers: 2}
    rows, columns = Places(mask, (0, 1), 0), Places(mask, (0, 1), 1)
    assert placed([mask], same) == (mask, (0, 1))
    assert placed([rows, columns], same) == (mask, (0, 1))
    assert placed([columns, rows], same) == (mask, (1, 0))
    assert placed([columns], same) == (mask, (1,))
    for chosen in ([rows, rows], [numbers], [mask, mask], [None], [Places(mask, (0, 1)), columns],
                   [Places(other, (0, 1), 0), columns]):
        with pytest.raises(NotWholeError):
            placed(chosen, same)


def test_columns_of_the_table():
    graph, (mask,) = graph_of(torch.ones(4, 3, dtype=torch.bool))
    node = graph.call_function(aten.select.int, (mask, -1, -1))
    node.meta["val"] = mask.meta["val"][:, -1]
    table = Places(mask, (1, 0))
    assert of_places(table, node) == Places(mask, (1, 0), 0)
    with pytest.raises(NotWholeError):
        of_places(Places(mask, (1, 0), 1), node)


def test_a_mask_of_numbers_is_one_of_truths():
    graph, (numbers,) = graph_of(torch.tensor([[0, 2, 1]]))
    writer = Writer(graph)
    table = places_of(writer.alike.enter(numbers), writer)
    assert table.columns == (0, 1)
    assert torch.equal(table.mask.meta["val"], torch.tensor([[False, True, True]]))


def test_arguments_by_name():
    graph, (x,) = graph_of(torch.ones(2))
    node = graph.call_function(aten.add.Tensor, (x, 2), {"alpha": 3})
    given = given_to(node)
    assert given == {"self": x, "other": 2, "alpha": 3}
    assert in_order(aten.add.Tensor, given) == ([x, 2], {"alpha": 3})
    assert in_order(aten.sum.dim_IntList, {"self": x, "keepdim": True, "dim": None}) == ([x, None, True], {})
    assert chosen_by({"self": 1, "mask": x}) is x
    assert axes_of([-1, 0], 3) == (2, 0)
    assert axes_of(None, 2) == (0, 1)


def test_shapes_are_alike_but_for_the_batch():
    assert are_alike((3, 2), (3, 2))
    assert not are_alike((3, 2), (3, 4))
    assert not are_alike((3,), (3, 1))


def test_nodes_that_compute_the_same():
    graph, (x, y) = graph_of(torch.ones(3), torch.ones(3))
    made = [graph.call_function(aten.gt.Scalar, (x, 0)), graph.call_function(aten.gt.Scalar, (x, 0)),
            graph.call_function(aten.gt.Scalar, (y, 0)), graph.call_function(aten.gt.Scalar, (x, 1)),
            graph.call_function(aten.rand_like.default, (x,)), graph.call_function(aten.rand_like.default, (x,)),
            graph.call_function(aten.add_.Tensor, (x, 1)), graph.call_function(aten.gt.Scalar, (x, 0))]
    alike = AlikeNodes()
    numbers = [alike.numbers[alike.enter(node)] for node in (x, y, *made)]
    assert numbers[2] == numbers[3]
    assert len(set(numbers)) == len(numbers) - 1  # what is drawn, or comes after a write, is like nothing before


@pytest.mark.parametrize("between", [lambda o: None, lambda o: o.add_(1)])
def test_masks_that_are_the_same_pick_as_many(between):
    def loss(o, y):
        with SameMasks():
            z = o * 1
            first = z[z > 0]
            between(z)
            return (first - z[z > 0]).square().sum() + y.sum()

    program = exported(loss, torch.randn(7, 3), torch.zeros(7))
    whole = whole_rows(program)
    if between(torch.ones(1)) is None:
        torch.testing.assert_close(run(whole, torch.randn(7, 3), torch.ones(7)), torch.tensor(7.0))
    else:
        assert whole is program
