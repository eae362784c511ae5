"""The Jacobian of the model's output: against torch.func.jacrev, whatever the loss is."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.errors import ModelError
from hbpcompiler.reference import Forward, jacobian
from tests.agreement import close
from tests.custom_op import Doubled
from tests.graph_models import MODELS, made
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.selection import few
from tests.uses import USES, used
from tests.ways import WAYS


def expected(model, *inputs, pick=lambda output: output, axis=0):
    """[N, *out, *theta] of every trainable parameter; `axis` is where the output has its samples."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def output(parameters):
        return pick(torch.func.functional_call(model, parameters, inputs)).movedim(axis, 0)

    return torch.func.jacrev(output)(parameters)


def check(found, model, *inputs, **how):
    wanted = expected(model, *inputs, **how)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        close(found[name], value, name)


@given(st.one_of(settings_of(dense_chains()), settings_of(spatial_chains())), st.booleans())
def test_random_chains(setting, alone):
    model, loss, X, y = setting
    compiled = hbp.compile(model, loss, ["jacobian"] if alone else ["grad", "diag_h", "jacobian"])
    torch.manual_seed(0)
    found = compiled(X, y).jacobian
    run = Forward(model, loss, [X], y, seed=0)  # dropout draws the same
    for name, parameter in run.parameters.items():
        rows = jacobian(run.output, parameter).view(len(X), -1, *parameter.shape)
        close(found[name], rows, name)


@given(st.sampled_from(list(MODELS)), st.sampled_from(list(WAYS)))
def test_graphs_in_every_way(name, way):
    model, X, y = made(name)
    result = hbp.compile(model, quantities=["jacobian", "diag_ggn"], limits=WAYS[way])(X, y)
    check(result.jacobian, model, X)


@given(st.sampled_from(list(USES)))
def test_uses_of_a_parameter(name):
    model, X, y = used(name)
    check(hbp.compile(model, quantities=["jacobian"])(X, y).jacobian, model, X)


class Encoder(nn.Module):
    """A transformer's layer, the samples on axis 1 or merged with the positions in what it returns."""

    def __init__(self, batch_first, merged):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=batch_first)
        self.head, self.merged = nn.Linear(4, 3), merged

    def forward(self, x):
        made = self.head(self.layer(x if self.layer.self_attn.batch_first else x.transpose(0, 1)))
        return made.reshape(-1, 3) if self.merged else made


@few(1, "further cases of one kind")
@pytest.mark.parametrize(("batch_first", "merged"), [(True, False), (False, False), (True, True)])
def test_outputs_with_positions(batch_first, merged):
    torch.manual_seed(0)
    model, X, y = Encoder(batch_first, merged).double(), torch.randn(2, 3, 4).double(), torch.randint(3, (2, 3))

    def loss(output, target):
        return F.cross_entropy(output.reshape(-1, 3), (target if batch_first else target.T).flatten())

    found = hbp.compile(model, loss, ["jacobian"])(X, y).jacobian
    assert found["head.weight"].shape == (2, 3, 3, 3, 4)  # [N, positions, classes, *theta]
    check(found, model, X, pick=lambda output: output.view(2, 3, 3) if merged else output, axis=int(not batch_first))


LOSSES = {
    "curved in the batch's mean": lambda output, target: F.cross_entropy(output, target).sqrt(),
    "mixes the samples": lambda output, target: (output @ output.T).logsumexp(1).mean(),
    "of the target alone": lambda output, target: target.double().mean(),
    "detached": lambda output, target: F.cross_entropy(output.detach(), target),
    "no derivative": lambda output, target: (output.argmax(1) == target).double().mean(),
}


@few(2, "further cases of one kind")
@pytest.mark.parametrize("name", LOSSES)
def test_it_needs_no_rule_for_the_loss(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double().eval()
    X, y = torch.randn(3, 3, dtype=torch.float64), torch.tensor([0, 1, 1])
    result = hbp.compile(model, LOSSES[name], ["jacobian"])(X, y)
    close(result.loss, LOSSES[name](model(X), y), "loss")
    check(result.jacobian, model, X)
    with pytest.raises(hbp.CompileError):
        hbp.compile(model, LOSSES[name], ["jacobian", "grad"])(X, y)


def test_a_model_that_mixes_samples_is_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    with pytest.raises(hbp.UnsupportedOpError, match="mixes"):
        hbp.compile(model, quantities=["jacobian"])(torch.randn(3, 3).double(), torch.tensor([0, 1, 1]))


class Several(nn.Module):
    """Two outputs that are trained, one that is not, one of whole numbers, and a parameter that the first lacks."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.lone = nn.Linear(3, 2), nn.Linear(2, 4), nn.Parameter(torch.ones(()))

    def forward(self, x):
        made = torch.tanh(self.first(x))
        return {"a": made, "b": self.second(made) * self.lone, "x": x * 2, "index": made.argmax(1)}


def test_of_several_outputs_it_is_the_one_that_the_loss_takes():
    torch.manual_seed(0)
    model, X, y = Several().double(), torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
    by_b = hbp.compile(model, lambda output, y: F.cross_entropy(output["b"], y), ["jacobian", "grad"])(X, y)
    check(by_b.jacobian, model, X, pick=lambda output: output["b"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        by_a = hbp.compile(model, lambda output, y: F.cross_entropy(output["a"], y), ["jacobian"])(X, y)
    assert any("do not influence the output: lone, second.weight, second.bias" in str(item.message) for item in caught)
    wanted = expected(model, X, pick=lambda output: output["a"])
    assert by_a.jacobian.keys() == {"first.weight", "first.bias"}
    for name in by_a.jacobian:
        close(by_a.jacobian[name], wanted[name], name)
    for loss in (lambda output, y: F.cross_entropy(output["b"], y) + output["a"].square().mean(),
                 lambda output, y: output["x"].mean()):
        with pytest.raises(ModelError, match="the model returns several that depend on trained parameters") as e:
            hbp.compile(model, loss, ["jacobian"])(X, y)
        assert "shape [N, 2]" in str(e.value)
        assert "shape [N, 4]" in str(e.value)


def test_an_empty_operand_on_the_way():
    """What is taken away before match keeps where derivatives begin."""
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(torch.cat([x, x.new_zeros(x.shape[0], 0)], 1))

    torch.manual_seed(0)
    model, X, y = Cached().double(), torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    for quantities in (["jacobian"], ["jacobian", "grad"]):
        check(hbp.compile(model, quantities=quantities)(X, y).jacobian, model, X)


def test_one_number_for_each_sample_and_one_sample():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 1), nn.Flatten(0)).double()
    compiled = hbp.compile(model, nn.MSELoss(), ["jacobian", "batch_grad"])
    for samples in (4, 1):
        X, y = torch.randn(samples, 3, dtype=torch.float64), torch.randn(samples, dtype=torch.float64)
        result = compiled(X, y)
        assert result.jacobian["0.weight"].shape == (samples, 4, 3)
        check(result.jacobian, model, X)
    alone = hbp.compile(model, nn.MSELoss(), ["jacobian"])
    alone(X, y)
    nothing = alone(X[:0], y[:0])
    assert nothing.jacobian["0.weight"].shape == (0, 4, 3)
    assert nothing.loss.isnan()  # whether it is a mean or a sum, nobody asked


def test_options():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3))
    X, y = torch.randn(6, 1, 3, 3), torch.randint(3, (6,))
    model[0].bias.requires_grad_(False)
    plain = hbp.compile(model, quantities=["jacobian"], verify="full")
    wanted = plain(X, y).jacobian
    assert {"0.weight", "4.weight", "4.bias"} == set(plain.verify(X, y).errors["jacobian"]) == set(wanted)
    doubled = expected(model.double(), X.double())
    model.float()
    for name, value in wanted.items():
        torch.testing.assert_close(value, doubled[name].float(), rtol=1e-5, atol=1e-6)
        value.add_(1).sub_(1)  # memory of its own
    scripted = hbp.compile(model, quantities={"jacobian": "4.*", "grad": "*"}, backend="torchscript",
                           curvature_dtype=torch.bfloat16)(X, y)
    assert scripted.jacobian.keys() == {"4.weight", "4.bias"}
    assert torch.equal(scripted.jacobian["4.weight"], plain(X, y).jacobian["4.weight"])
    assert plain.predicted_memory(100) >= 100 * 3 * (8 + 6 + 3) * 4
    with pytest.raises(hbp.InputError, match="Batches of up to"):
        hbp.compile(model, quantities=["jacobian"], memory_budget="4KiB", example_inputs=(X, y))(
            X.repeat(100, 1, 1, 1), y.repeat(100))
    assert "begins at the output" in plain.explain()
    with pytest.raises(hbp.InputError, match="jacobian is of the model's output: leave them out"):
        plain(X, y, sample_weights=torch.ones(6))
    both = hbp.compile(model, quantities=["jacobian", "grad"])(X, y, sample_weights=torch.zeros(6))
    assert torch.equal(both.jacobian["4.weight"], plain(X, y).jacobian["4.weight"])


def test_a_wrong_jacobian_is_noticed():
    """By the proof on the first batch: a custom backward is no derivative of its forward."""
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return Doubled.apply(self.layer(x))

    model, X, y = Model().double(), torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    with pytest.raises(hbp.ProofError, match=r"jacobian of 'layer\.weight': off by"):
        hbp.compile(model, lambda output, y: F.cross_entropy(output, y).sqrt(), ["jacobian"])(X, y)
