"""Which parameters share a Kronecker block, on operations written by hand."""

import pytest
import torch

from hbpcompiler.compiler.plan.joint import Joint, joint_blocks, site_with_one, with_one
from hbpcompiler.compiler.routes import NOTHING, Site
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.quantities import FACTOR, GGN, INPUT_FACTOR, SUM, Closing
from hbpcompiler.rule import Contraction, Op
from tests.hand_made import graph, matched, mlp, operation, parameter, value

FACTORS = frozenset({Closing(GGN, FACTOR), Closing("", INPUT_FACTOR)})


def layer(target, weight, bias, given=(6, 6), made=(4, 6), attributes=(), **names):
    """x -> the layer -> a squared error."""
    x, y = value("x", N, *given, role="input"), value("y", N, *made, role="target")
    output, w, b = value("output", N, *made), parameter("a", *weight), parameter("b", *bias)
    tensors = {names["x"]: x, names["w"]: w, names["b"]: b}
    return matched(graph([
        operation(target, output, attributes, **tensors),
        operation("mse_loss", value("loss"), {"reduction": 1}, in_loss=True, self=output, target=y),
    ], state=[w, b], inputs=[x], targets=[y]))


CONV = {"stride": [1], "padding": [1], "dilation": [1], "groups": 2}
TRANSPOSED = {"stride": [1], "padding": [1], "output_padding": [0], "groups": 1, "dilation": [1]}
ADDED = {"given": (3,), "made": (4,), "x": "mat1", "w": "mat2", "b": "self"}
PLAIN = {"x": "input", "w": "weight", "b": "bias"}


@pytest.mark.parametrize(("joined", "target", "weight", "bias", "more"), [
    (True, "linear", (6, 6), (6,), {"given": (4, 6), "made": (4, 6), **PLAIN}),
    (True, "conv1d", (4, 3, 3), (4,), {"attributes": CONV, **PLAIN}),
    (False, "conv_transpose1d", (6, 4, 3), (4,), {"attributes": TRANSPOSED, **PLAIN}),
    (True, "addmm", (3, 4), (4,), {"attributes": {"alpha": 0.5, "beta": 1}, **ADDED}),
    (False, "addmm", (3, 4), (4,), {"attributes": {"alpha": 1, "beta": 2.0}, **ADDED}),
    (False, "addmm", (3, 4), (1,), {"attributes": {"alpha": 1, "beta": 1}, **ADDED}),
], ids=str)
def test_a_bias_belongs_to_a_weight_if_its_cotangent_is_the_weights_columns(joined, target, weight, bias, more):
    found = joint_blocks(layer(target, weight, bias, **more), FACTORS)
    assert found.biases == ({"a": "b"} if joined else {})
    assert found.apart.keys() == (set() if joined else {"a", "b"})
    assert found.in_another("b") is joined
    assert found.own("b", frozenset({SUM, FACTOR})) == ({SUM} if joined else {SUM, FACTOR})


def test_only_where_factors_are_asked_for():
    assert joint_blocks(matched(mlp()), frozenset({Closing(GGN, SUM)})) == Joint()
    found = joint_blocks(matched(mlp()), FACTORS)
    assert found.biases == {"a.weight": "a.bias"}
    assert set(found.apart) == {"b.weight"}
    assert len(found.notes()) == 2


@pytest.mark.parametrize("right", ["ni", "npi", "nip", "ngip", "ngpi"])
def test_a_one_behind_the_features(right):
    lengths = {"n": 2, "p": 3, "i": 4, "g": 5}
    operand = torch.randn([lengths[letter] for letter in right])
    result = "nkgoi" if "g" in right else "nkoi"
    contraction = Contraction(f"nk{right[1:].replace('i', 'o')},{right}->{result}", operand=lambda op: op.operand)
    made = with_one(contraction).operand(Op({"operand": operand}, {}, {}))
    axis = right.index("i")
    assert torch.equal(made.narrow(axis, 0, 4), operand)
    assert torch.equal(made.narrow(axis, 4, 1), torch.ones_like(operand.narrow(axis, 0, 1)))
    sizes = tuple(sorted({**lengths, "o": 2}.items()))
    own = site_with_one(Site(contraction.equation, sizes, NOTHING, 0, False, 8, True))
    assert own.size("i") == 5
    assert own.size("gop") == 30
    assert not own.native_sum
