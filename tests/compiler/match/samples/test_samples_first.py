"""The sample axis brought to the front of a graph that has it behind the positions."""

import pytest
import torch

import hbpcompiler as hbp
from hbpcompiler.compiler.match.samples.sample_wise import misplaced
from hbpcompiler.compiler.match.samples.samples_first import samples_first
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.rule.registry import builtin
from tests.hand_made import graph, operation, parameter, value

X, Y, W = value("x", N, 4, 3, role="input"), value("y", N, 2, role="target"), parameter("w", 2, 3)
TURNED, HIDDEN, LAST = value("turned", 4, N, 3), value("hidden", 4, N, 2), value("last", N, 2)


def time_first(*middle, end=HIDDEN):
    """x [N, T, 3] -> [T, N, 3] -> linear -> the last position."""
    return graph([
        operation("transpose", TURNED, {"dim0": 0, "dim1": 1}, overload="int", self=X),
        operation("linear", HIDDEN, {"bias": None}, input=TURNED, weight=W),
        *middle,
        operation("select", LAST, {"dim": 0, "index": -1}, overload="int", self=end),
        operation("mse_loss", value("loss"), {"reduction": 1}, in_loss=True, **{"self": LAST, "target": Y}),
    ], state=[W], inputs=[X], targets=[Y])


def test_which_values_are_misplaced():
    assert misplaced(HIDDEN)
    assert misplaced(value("v", 2 * N, 3))
    assert not misplaced(X)
    assert not misplaced(W)


def test_every_value_on_the_way_has_its_samples_in_front():
    made, findings = samples_first(time_first(), builtin())
    assert findings == []
    on_the_way = [own.output for own in made.operations if own.name in made.active and own.output.shape]
    assert on_the_way
    assert not any(map(misplaced, on_the_way))
    assert made.outputs == [LAST]


def test_the_first_axis_of_a_batch_of_one_is_kept_for_what_counts_axes():
    made, _ = samples_first(time_first(), builtin())
    assert (N, 4, 1, 2) in {own.output.shape for own in made.operations}


def test_a_graph_with_its_samples_in_front_is_left_alone():
    found = graph([operation("linear", LAST, {"bias": None}, input=value("z", N, 3, role="input"), weight=W),
                   operation("mse_loss", value("loss"), {"reduction": 1}, in_loss=True,
                             **{"self": LAST, "target": Y})], state=[W], inputs=[value("z", N, 3, role="input")],
                  targets=[Y])
    assert samples_first(found, builtin()) == (found, [])


def test_what_mixes_samples_is_reported():
    """A softmax over the axis of the samples."""
    mixed = value("mixed", 4, N, 2)
    softmax = operation("softmax", mixed, {"dim": 1, "dtype": None}, overload="int", self=HIDDEN)
    found = time_first(softmax, end=mixed)
    made, (finding,) = samples_first(found, builtin())
    assert made is found
    assert "aten.softmax in module 'mixed'" in finding
    assert "keep the samples in front" in finding


def test_numbers_are_those_of_the_graph():
    """The rewritten operations, run one after the other."""
    made, _ = samples_first(time_first(), builtin())
    torch.manual_seed(0)
    x, w = torch.randn(5, 4, 3), torch.randn(2, 3)
    values = {"x": x, "w": w}
    from hbpcompiler.compiler.match.operation.aten import call, overload_of

    for own in made.operations[:-1]:
        values[own.name] = call(own, overload_of(own), lambda slot, own=own: values[own.tensors[slot].name],
                                lambda item: int(item.subs(N, 5)) if hasattr(item, "free_symbols") else item)
    torch.testing.assert_close(values["last"], x[:, -1] @ w.t())


SHOWN = {
    "rows of the columns": lambda o: o.T.reshape(-1, 2).prod(1).sum(),
    "samples between others": lambda o: o.unflatten(1, (2, 3)).transpose(0, 1).reshape(3, -1, 2).prod(2).sum(),
    "pairs of columns": lambda o: o.T.reshape(3, -1).exp().prod(0).sum(),
}


@pytest.mark.parametrize("shown", SHOWN)
def test_other_shapes_of_what_has_its_samples_elsewhere(shown):
    """In as many axes, but others before that of the samples: a batch of one does not tell whether samples meet."""
    torch.manual_seed(0)
    model, loss = torch.nn.Linear(3, 6).double(), lambda o, y: SHOWN[shown](o - y)
    compiled = hbp.compile(model, loss, ["batch_grad"], verify=False)
    X, y = torch.randn(7, 3).double(), torch.randn(7, 6).double()
    if shown != "pairs of columns":
        with pytest.raises(hbp.UnsupportedOpError, match="its samples are not in front"):
            compiled(X, y)
        return
    found = compiled(X, y).batch_grad["weight"]
    each = [torch.autograd.grad(loss(model(X[n : n + 1]), y[n : n + 1]), model.weight)[0] for n in range(7)]
    torch.testing.assert_close(found, torch.stack(each), rtol=1e-12, atol=1e-12)
