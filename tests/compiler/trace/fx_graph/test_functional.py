"""What an export changes in place is written as operations that change nothing, composites by their parts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export.graph_signature import InputKind

from hbpcompiler.compiler.match.operation.aten import decomposition
from hbpcompiler.compiler.trace.fx_graph import functional
from hbpcompiler.rule.registry import builtin
from tests.selection import few


def views_before(h):
    flat = h.flatten(1)
    h.relu_()
    return flat * h.flatten(1)


def views_after(h):
    g = h.relu_()
    return (g.view(-1, 6) + h.reshape(-1, 6)).unflatten(1, (2, 3)).flatten(1)


def two_names(h):
    same = F.dropout(h, 0.5, training=False)
    same.mul_(2)
    return h + same


def two_names_in_place(h):
    same = F.dropout(h, 0.5, training=False, inplace=True)
    return h + same.mul_(2)


def unchanged_view(h):
    flat = h.flatten(1)
    F.dropout(flat, 0.5, training=False, inplace=True)
    return flat * h.flatten(1)


def again(h):
    h.mul_(2).add_(1)
    h -= 0.5
    h.relu_()
    return h * h


def no_copy(h):
    same = h.to(h.dtype).contiguous()
    same.tanh_()
    return same + h


def items(h):
    h.select(1, 0).mul_(3)
    return torch.cat([h.flatten(1), h[:, 1]], 1)


def items_alone(h):
    first, second = h.unbind(1)
    return torch.cat([first * 2, second], 1)


def own_items(h):
    value, place = h.max(1)
    value.mul_(2)
    return value + place


def part_of_zeros(h):
    made = torch.zeros_like(h)
    made[:, 0] = h[:, 1]
    return made.flatten(1) * h.flatten(1)


def chain_of_views(h):
    part = h[:, 1]
    h[:, 1:][:, 0, ::2].mul_(2)
    part += 1
    return torch.cat([part, h.flatten(1)], 1) * h[:, 0, :1]


def overlapping(h):
    first, last = h[:, :, :2], h[:, :, 1:]
    first *= 3
    last.mul_(2)
    h[:, 0] += first[:, 1, 1:]
    return first * last


def diagonal(h):
    h.diagonal(0, 1, 2).add_(1)
    h.diagonal(1, 1, 2)[:, 0].zero_()
    return h


def rows_one_by_one(h):
    made = torch.empty_like(h)
    for row in range(2):
        made[:, row] = h[:, 1 - row] * (row + 2)
    return made


def base_after_view(h):
    row = h[:, 0]
    h.mul_(row.unsqueeze(1).clone())
    h[:, 1] = row
    return row + h.sum(1)


def another_order(h):
    h.mT.flatten(1)
    h.mT[:, 0] = 2 * h[:, :, 1]
    return h


def turned_in_place(h):
    row = h[:, 0]
    h.transpose_(1, 2)
    return row * h[:, :, 1]


def another_dtype(h):
    made = h.float()
    made += h
    return made.double()


def twice_the_same(h):
    g = h * 2
    return torch.cat(torch.broadcast_tensors(h, h), 1) + torch.cat(torch.broadcast_tensors(h, g), 1)


def alike_views(h):
    return torch.cat(torch.broadcast_tensors(h.flatten(1), (h * 2).flatten(1)), 1)


def numbers_of_comparisons(h):
    above = h.clone()
    above.gt_(0.1)
    return h * (above + above)


def small_integers(h):
    whole = (h.detach() * 9).to(torch.int8)
    whole.cumsum_(1)
    whole.mul_(20)
    return h * whole / 100


def constant(h):
    return h * torch.tensor([1.0, 2.0, 3.0], dtype=h.dtype)


def turned(h):
    return h.mT.contiguous().reshape(h.shape[0], -1).chunk(2, 1)[1]


def unused_change(h):
    other = h * 2
    other.zero_()
    return h


def clamped(h):
    h.clamp_(min=-0.2, max=0.3)
    return h.squeeze().narrow(1, 0, 1)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2, dtype=torch.float64)
        self.norm.running_mean.copy_(torch.tensor([0.1, 0.2]))

    def forward(self, h):
        h = self.norm(h)
        h += 1
        return h


HERE = [views_after, two_names, two_names_in_place, unchanged_view, again, no_copy, items_alone, own_items, constant,
        turned, twice_the_same, alike_views, unused_change, clamped, views_before, items, part_of_zeros, chain_of_views,
        overlapping, diagonal, rows_one_by_one, base_after_view]
TORCHS = [another_order, turned_in_place, another_dtype, numbers_of_comparisons, small_integers]


class Model(nn.Module):
    def __init__(self, does):
        super().__init__()
        self.linear = nn.Linear(3, 3, dtype=torch.float64)
        self.does = does

    def forward(self, x):
        return self.does(self.linear(x)).double().square().sum()


def changes(node):
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def exported(model, x):
    return torch.export.export(model, (x,), dynamic_shapes=(({0: torch.export.Dim.DYNAMIC},)), strict=False)


def run(program, model, x):
    """The functional graph's value."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers()), **program.constants}
    given = [x if spec.kind is InputKind.USER_INPUT else state[spec.target]
             for spec in program.graph_signature.input_specs]
    return Running(torch.fx.GraphModule({}, program.graph)).run(*given)[-1]


class Running(torch.fx.Interpreter):
    def call_function(self, target, args, kwargs):
        if target is torch.ops.aten.copy.default:  # torch knows no derivative of it
            return args[1].to(args[0].dtype).expand_as(args[0]).clone()
        return super().call_function(target, args, kwargs)


@few(3, "further cases of one kind")
@pytest.mark.parametrize(("does", "torchs"), [(each, False) for each in HERE] + [(each, True) for each in TORCHS])
def test_values_and_gradients_are_kept(does, torchs, monkeypatch):
    torch.manual_seed(0)
    model, x = Model(does), torch.randn(4, 2, 3, dtype=torch.float64)
    program = exported(model, x)
    asked = []
    own = type(program).run_decompositions
    monkeypatch.setattr(type(program), "run_decompositions", lambda self, table: asked.append(1) or own(self, table))
    written = functional.functional(program)
    assert bool(asked) is torchs
    assert not any(changes(node) for node in written.graph.nodes)
    written.graph.lint()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    value, expected = run(written, model, x), model(x)
    torch.testing.assert_close(value, expected, rtol=0, atol=0)
    parameters = list(model.parameters())
    torch.testing.assert_close(torch.autograd.grad(value, parameters), torch.autograd.grad(expected, parameters))


@pytest.mark.parametrize("train", [False, True])
def test_normalisation_by_fixed_statistics_is_written_here_and_by_the_batchs_by_torch(train, monkeypatch):
    model, x = Model(Normed()).train(train), torch.randn(4, 2, 3, dtype=torch.float64)
    program = exported(model, x)
    asked = []
    own = type(program).run_decompositions
    monkeypatch.setattr(type(program), "run_decompositions", lambda self, table: asked.append(1) or own(self, table))
    written = functional.functional(program)
    assert bool(asked) is train
    assert not any(changes(node) for node in written.graph.nodes)
    torch.testing.assert_close(run(written, model, x), model(x))


def test_an_input_that_is_changed_goes_torchs_way_and_stays_for_the_graph():
    model = Model(lambda h: h)
    model.forward = lambda x: (model.linear(x.mul_(2)) * x).sum()
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    written = functional.functional(exported(model, x))
    assert not any(changes(node) for node in written.graph.nodes)
    expected = model(x.clone())
    torch.testing.assert_close(run(written, model, x), expected)


def test_autocast_casts_by_torchs_way():
    model, x = Model(torch.tanh).float(), torch.randn(4, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        written = functional.functional(exported(model, x))
        expected = model(x)
    assert {torch.bfloat16} < {node.meta["val"].dtype for node in written.graph.find_nodes(
        op="call_function", target=torch.ops.aten._to_copy.default)}
    torch.testing.assert_close(run(written, model, x), expected)


def test_outputs_and_names_are_those_of_the_signature():
    model, x = Model(again), torch.randn(4, 2, 3, dtype=torch.float64)
    written = functional.functional(exported(model, x))
    outputs = [node.name for node in written.graph.output_node().args[0]]
    assert outputs == [spec.arg.name for spec in written.graph_signature.output_specs]
    again_apart = written.run_decompositions({torch.ops.aten.square.default: lambda x: x * x})
    torch.testing.assert_close(run(again_apart, model, x), model(x))


@pytest.mark.parametrize(("does", "operation"), [
    (lambda h: h.roll((1, 1), (1, 2)), "roll.default"), (lambda h: F.glu(h[..., :2]), "glu.default"),
    (lambda h: F.smooth_l1_loss(h, h.detach() * 2), "smooth_l1_loss.default"),
    (F.logsigmoid, "log_sigmoid.default"), (lambda h: F.triplet_margin_loss(h, h * 2, h.sin()),
                                            "triplet_margin_loss.default"),
    (lambda h: torch.einsum("ntd,dke->nte", h, h.new_ones(3, 2, 3)), "einsum.default"),
    (lambda h: torch.einsum("ntd,nsd,nud->tsu", h, h * 2, h.sin()), "einsum.default")])
def test_operations_are_taken_apart_one_by_one(does, operation, monkeypatch):
    """As torch does it, which traces the whole graph: by a table of its own, or what a composite itself calls;
    composites in the pieces stay whole."""
    model, x = Model(does), torch.randn(4, 2, 3, dtype=torch.float64)
    overload = getattr(getattr(torch.ops.aten, operation.split(".")[0]), operation.split(".")[1])
    table = {overload: decomposition(overload, builtin())}
    with torch.backends.opt_einsum.flags(enabled=False):  # as traces are made: it takes lengths for numbers
        whole = functional.functional(exported(model, x))
    torchs = whole.run_decompositions(dict(table))
    monkeypatch.setattr(type(whole), "run_decompositions", None)
    written = functional.taken_apart(whole, table)
    names = [str(node.target) for node in written.graph.nodes if node.op == "call_function" and node.users]
    assert sorted(names) == sorted(str(node.target) for node in torchs.graph.nodes
                                   if node.op == "call_function" and node.users)
    assert str(overload) not in names
    torch.testing.assert_close(run(written, model, x), model(x))


def test_what_fails_here_goes_torchs_way(monkeypatch):
    monkeypatch.setattr(functional, "make_fx", None)
    model, x = Model(turned), torch.randn(4, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(run(functional.functional(exported(model, x)), model, x), model(x))


def test_calls_that_are_alike_are_traced_once(monkeypatch):
    traces = []
    own = functional.make_fx
    monkeypatch.setattr(functional, "make_fx", lambda *given, **named: traces.append(1) or own(*given, **named))
    model = Model(lambda h: h.flatten(1) + (h * 2).flatten(1) + h.flatten(1, 2))
    functional.functional(exported(model, torch.randn(4, 2, 3, dtype=torch.float64)))
    assert len(traces) == 3  # flatten(1), flatten(1, 2), double()
