"""Values, operations and what the graph says about itself."""

import torch

from hbpcompiler.compiler.trace.graph import SHOWN_CODE, N, Source, meta
from tests.hand_made import mlp, operation, parameter, value


def test_a_value_with_a_sample_axis():
    batched = value("h", N, 3, 4)
    assert batched.batched
    assert batched.of_batch
    assert batched.sample_shape == (3, 4)
    assert tuple(meta(batched, 5).shape) == (5, 3, 4)
    assert meta(batched).is_meta


def test_a_value_without_one():
    weight = parameter("w", 3, 4)
    assert not weight.batched
    assert not weight.of_batch
    assert weight.sample_shape == (3, 4)


def test_a_shared_value_has_a_sample_axis_of_length_one():
    shared = value("w_each", 1, 3, shared=True)
    assert shared.batched
    assert shared.sample_shape == (3,)
    assert tuple(meta(shared, 5).shape) == (5, 3)


def test_positions_merged_into_the_samples():
    merged = value("m", 4 * N, 3)
    assert not merged.batched
    assert merged.of_batch
    assert merged.sample_shape[0] == 4 * N
    assert tuple(meta(merged, 5).shape) == (20, 3)


def test_active_values_lie_between_parameters_and_the_loss():
    graph = mlp()
    assert graph.active == {"a.weight", "a.bias", "b.weight", "hidden", "bent", "output", "loss"}


def test_integers_are_not_active():
    index = value("index", N, dtype=torch.long)
    assert not index.floating


def test_the_ending_is_what_reads_the_batch_last():
    graph = mlp()
    reductions, tail = graph.ending
    assert [operation.name for operation in reductions] == ["loss"]
    assert tail == []


def test_the_network_has_an_edge_for_each_tensor():
    network = mlp().network()
    assert network.edges["a.weight", "hidden"]["slot"] == "weight"
    assert network.nodes["hidden"]["operation"] == "aten.linear"
    assert network.nodes["x"]["role"] == "input"


def test_the_output_decides_the_dtype():
    assert mlp().dtype is torch.float32


def test_a_short_name():
    assert operation("relu_", value("r", N)).short == "relu"


def test_a_source_reads_as_a_place():
    assert str(Source()) == "the model's forward"
    assert str(Source(in_loss=True)) == "the loss"
    place = Source("0.conv", "torch.nn.modules.conv.Conv2d", "net.py", 7, "return self.conv(x)")
    assert str(place) == "module '0.conv' (Conv2d), net.py:7: return self.conv(x)"
    long = Source(file="net.py", line=7, code="x" * (SHOWN_CODE + 1))
    assert str(long) == f"the model's forward, net.py:7: {'x' * SHOWN_CODE} ..."
