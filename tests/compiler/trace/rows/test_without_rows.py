"""What a graph comes to where a mask picks nothing."""

import pytest
import torch
import torch.nn.functional as F

from hbpcompiler.compiler.trace.rows.forms import EMPTY, FALSE, Known, Numbers
from hbpcompiler.compiler.trace.rows.labelled_rows import MEAN, NONE, SUMMED
from hbpcompiler.compiler.trace.rows.without_rows import Forms


class Whole(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, m):
        return self.function(x, m > 0)


def graph_of(function):
    x, m = torch.randn(7, 3), torch.ones(7)
    dynamic = ({0: torch.export.Dim.DYNAMIC},) * 2
    program = torch.export.export(Whole(function), (x, m), dynamic_shapes=dynamic, strict=False)
    return program.run_decompositions({}).graph


def forms_of(function, numbers, *, empty):
    """Of what the graph puts out, where the mask is all false or not."""
    graph = graph_of(function)
    plain = Forms(graph, numbers, {}).of
    masks = [node for node in graph.nodes if node.target is torch.ops.aten.gt.Scalar][:1]
    false = {plain[mask] for mask in masks} if empty else set()
    found = Forms(graph, numbers, {}, Known(false=false), zero_means_of=())
    return found, found.outputs(graph.output_node().args[0])


SAME = {
    "put back": (lambda x, m: x.clone().index_put((m,), x[m] * 2), lambda x, m: x + 0),
    "added": (lambda x, m: x.index_add(0, m.nonzero()[:, 0], x[m].exp()), lambda x, m: x),
    "where": (lambda x, m: torch.where(m[:, None], x.exp(), x), lambda x, m: x),
    "a sum": (lambda x, m: x.sum() + x[m].square().sum(), lambda x, m: x.sum()),
    "a mean": (lambda x, m: x.sum() + (x[m] + 1).sum() / x[m].exp().sum(), lambda x, m: x.sum()),
    "a product": (lambda x, m: x + m[:, None] * x.exp(), lambda x, m: x),
    "filled": (lambda x, m: x.masked_fill(m[:, None], 3.0), lambda x, m: x),
    "written anew": (lambda x, m: x.sin() + x.sin(), lambda x, m: x.sin() + x.sin()),
    "of both": (lambda x, m: torch.where((m & (x[:, 0] > 0))[:, None], x.exp(), x), lambda x, m: x),
}
OTHERS = {
    "a mean over others": (lambda x, m: x.sum() + (x[m] + 1).sum() / x.exp().sum().clamp(max=0), lambda x, m: x.sum()),
    "another value": (lambda x, m: torch.where(m[:, None], x.exp(), x.tanh()), lambda x, m: x),
    "beside": (lambda x, m: x.index_put((m,), x[m] * 2) + 1, lambda x, m: x),
    "either": (lambda x, m: torch.where((m | (x[:, 0] > 0))[:, None], x.exp(), x), lambda x, m: x),
    "another type": (lambda x, m: x + m.double()[:, None] * x.double(), lambda x, m: x),
    "the others": (lambda x, m: torch.where(~m[:, None], x.exp(), x), lambda x, m: x),
    "detached": (lambda x, m: x.exp().detach(), lambda x, m: x.exp()),
    "a number": (lambda x, m: x + 3, lambda x, m: x + 4),
    "broadcast": (lambda x, m: x[:, :1].masked_fill(m[:, None].expand(-1, 3), 2.0), lambda x, m: x[:, :1]),
    "of another shape": (lambda x, m: ~(m[:, None] & (x > 0)), lambda x, m: ~m),
    "a mask put": (lambda x, m: (x > 0)[:, 0].index_put((torch.arange(x.shape[0]),), m), lambda x, m: (x > 0)[:, 0]),
    "over nothing": (lambda x, m: x.sum() + (x * m[:, None]).sum() * (1.0 / m.sum()), lambda x, m: x.sum()),
    "over something": (lambda x, m: x.sum() + (x * m[:, None]).sum() / (x > 1).sum(), lambda x, m: x.sum()),
    "another draw": (lambda x, m: torch.rand_like(x) + torch.rand_like(x), lambda x, m: 2 * torch.rand_like(x)),
}


@pytest.mark.parametrize("name", SAME)
def test_what_is_the_same_without_rows(name):
    numbers = Numbers()
    with_rows, without = SAME[name]
    assert forms_of(with_rows, numbers, empty=True)[1] == forms_of(without, numbers, empty=False)[1]
    if name != "written anew":
        assert forms_of(with_rows, numbers, empty=False)[1] != forms_of(without, numbers, empty=False)[1]


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not(name):
    numbers = Numbers()
    with_rows, without = OTHERS[name]
    assert forms_of(with_rows, numbers, empty=True)[1] != forms_of(without, numbers, empty=False)[1]


def test_means_of_nothing_are_noted():
    found, (form,) = forms_of(lambda x, m: x[m].mean(), Numbers(), empty=True)
    assert form[0] == "zero"
    assert [node.target for node in found.zero_means] == [torch.ops.aten.mean.default]
    found, (form,) = forms_of(lambda x, m: x[m & (x[:, 0] > 0)].mean(), Numbers(), empty=True)
    assert not found.zero_means
    assert isinstance(form, str)


def test_rows_of_nothing():
    assert [kind for kind, _ in forms_of(lambda x, m: x[m].exp(), Numbers(), empty=True)[1]] == [EMPTY]
    assert [kind for kind, _ in forms_of(lambda x, m: m & m, Numbers(), empty=True)[1]] == [FALSE]
    assert [F._Reduction.get_enum(name) for name in ("none", "mean", "sum")] == [NONE, MEAN, SUMMED]
