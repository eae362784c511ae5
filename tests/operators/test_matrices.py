"""Whole matrices of operators against brute force in float64: chains, graphs, tied weights, attention, recurrence."""

import copy

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._C._functorch import TransformType, get_interpreter_stack

import hbpcompiler as hbp
from tests.custom_op import Doubled
from tests.models.test_random_graphs import graphs
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.operators.dense import check, dense, double, forward, same
from tests.selection import slow
from tests.transformers_models import cross_entropy, needed, tied_gpt2

KINDS = ("ggn", "hessian", "fisher_empirical")


@slow("random networks")
@given(st.one_of(settings_of(dense_chains()), settings_of(spatial_chains())))
def test_random_chains(setting):
    """Of all losses, both reductions, frozen parameters, one sample or several, with dropout in training mode."""
    model, loss, X, y = setting
    check(model, loss, (X,), y)


@given(graphs(), st.sampled_from(KINDS))
def test_random_graphs(setting, kind):
    model, X, y = setting
    check(model, nn.CrossEntropyLoss(), (X, *model.inputs()), y, [kind])


class Tied(nn.Module):
    """One weight at three places, a parameter that is not used, a number, and two outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.idle, self.scale = nn.Parameter(torch.ones(2)), nn.Parameter(torch.tensor(0.7))

    def forward(self, a, b):
        inner = torch.tanh(self.first(a)) * self.scale
        return {"all": self.second(inner) + b, "step": inner @ self.first.weight.T}


def two_losses(output, y):
    return nn.functional.cross_entropy(output["all"], y) + 0.3 * output["step"].square().mean()


def test_tied_and_unused_parameters_and_several_inputs_and_outputs():
    model = Tied().double()
    a, b, y = double(4, 3), double(4, 3), torch.tensor([0, 2, 1, 1])
    check(model, two_losses, (a, b), y)
    operator = hbp.operator(model, two_losses, ((a, b), y))
    assert list(operator.parameters) == ["idle", "scale", "first.weight", "first.bias", "second.bias"]
    assert not operator.to_dense()[:2].any()
    named = hbp.operator(model, two_losses, ({"b": b, "a": a}, y))
    same(named.to_dense(), operator.to_dense())


def test_chosen_parameters_are_rows_and_columns_of_the_whole():
    model = Tied().double()
    batch = double(4, 3), double(4, 3), torch.tensor([0, 2, 1, 1])
    whole = hbp.operator(model, two_losses, batch, "hessian").to_dense()
    part = hbp.operator(model, two_losses, batch, "hessian", parameters=["scale", "*.bias"])
    assert list(part.parameters) == ["scale", "first.bias", "second.bias"]
    kept = [2, *range(12, 18)]
    same(part.to_dense(), whole[kept][:, kept])


class Recurrent(nn.Module):
    """An LSTM, which has no forward-mode derivative, then attention, samples behind the steps."""

    def __init__(self):
        super().__init__()
        self.recurrent, self.attention = nn.LSTM(2, 2), nn.MultiheadAttention(2, 1)

    def forward(self, x):
        steps = self.recurrent(x.transpose(0, 1))[0]
        return self.attention(steps, steps, steps)[0]  # [steps, N, features]


def per_step(output, y):
    return nn.functional.mse_loss(output.transpose(0, 1), y, reduction="sum")


per_step.reduction = "sum"


@slow("the axis is found by what tests/compiler/match has")
def test_samples_behind_positions():
    """The samples' axis is found: [T, N, features], and [N T, features] with the samples in front or behind."""
    model, X, y = Recurrent().double(), double(3, 2, 2), double(3, 2, 2)
    operators = {kind: hbp.operator(model, per_step, (X, y), kind) for kind in KINDS}
    samples = [hbp.reference.Forward(model, per_step, (X[n : n + 1],), y[n : n + 1]) for n in range(3)]
    for kind, operator in operators.items():
        same(operator.to_dense(), sum(dense(one, kind) for one in samples), what=kind)
    flat = {True: lambda steps: steps.transpose(0, 1).flatten(0, 1), False: lambda steps: steps.flatten(0, 1)}
    for samples_first, flatten in flat.items():
        def loss(output, y, samples_first=samples_first):
            steps = output.unflatten(0, (-1, 2)) if samples_first else output.unflatten(0, (2, -1)).transpose(0, 1)
            return (steps - y).square().sum()

        merged = nn.Sequential(model)
        merged.register_forward_hook(lambda module, given, output, flatten=flatten: flatten(output))
        found = hbp.operator(merged, loss, (X, y), "fisher_empirical")
        same(found.to_dense(), operators["fisher_empirical"].to_dense())


@slow("a transformer")
@needed
def test_a_tied_transformer_with_inputs_by_name():
    """GPT-2's tokens, some of which are ignored; a few products, as the matrix is large."""
    model, x, y = tied_gpt2()
    model = model.double().eval()
    names = ["transformer.wte.weight", "transformer.h.0.attn.c_attn.bias", "transformer.ln_f.weight"]
    check(model, cross_entropy, x, y, names=names)


def test_dropout_is_one_matrix_and_nothing_of_the_users_changes():
    model = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Linear(6, 2)).double()
    X, y, loss = double(5, 3), torch.tensor([0, 1, 1, 0, 1]), nn.CrossEntropyLoss()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before, arrays = torch.get_rng_state(), numpy.random.get_state()[1].copy()
    for kind in ("ggn", "hessian"):
        operator = hbp.operator(model, loss, (X, y), kind, seed=3)
        found = operator.to_dense()
        same(found, dense(forward(operator, _without_buffers(model), loss, (X,), y), kind), what=kind)
        same(operator @ found[0], found @ found[0], what=kind)
        assert torch.equal(operator.to_dense(), found)
        other = hbp.operator(model, loss, (X, y), kind, seed=4)
        assert not torch.allclose(other.to_dense(), found)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert model[2].track_running_stats
    assert torch.equal(torch.get_rng_state(), before)
    assert (numpy.random.get_state()[1] == arrays).all()


def _without_buffers(model):
    """A copy whose batch norm does not count along."""
    copied = copy.deepcopy(model)
    copied[2].track_running_stats = False
    return copied


def test_parameters_are_read_live():
    model = nn.Linear(2, 2).double()
    operator = hbp.operator(model, nn.CrossEntropyLoss(), (double(3, 2), torch.tensor([0, 1, 1])), "hessian")
    before = operator.to_dense()
    with torch.no_grad():
        model.weight.mul_(3)
    again = hbp.operator(model, nn.CrossEntropyLoss(), operator._data._given[0], "hessian").to_dense()
    assert not torch.allclose(before, again)
    assert torch.equal(operator.to_dense(), again)


def test_a_loss_that_is_not_convex():
    """Products with its GGN are those of an indefinite matrix."""
    model = nn.Linear(2, 2).double()

    def loss(output, y):
        return (torch.sin(3 * output) * y).mean()

    X, y = double(4, 2), double(4, 2)
    check(model, loss, (X,), y)
    values = torch.linalg.eigvalsh(hbp.operator(model, loss, (X, y)).to_dense())
    assert values[0] < 0 < values[-1]
    with pytest.raises(hbp.HbpError, match="not known to be positive"):
        hbp.operator(model, loss, (X, y), "fisher_sampled")


@slow("many draws")
def test_sampled_fishers_have_the_ggn_as_their_mean():
    model, X = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Dropout(0.2), nn.Linear(3, 3)).double(), double(4, 2)
    for loss, y in ((nn.CrossEntropyLoss(), torch.tensor([0, 2, 1, 2])), (nn.MSELoss(reduction="sum"), double(4, 3))):
        ggn = hbp.operator(model, loss, (X, y)).to_dense()
        operator = hbp.operator(model, loss, (X, y), "fisher_sampled", mc_samples=4000)
        found = operator.to_dense()
        assert torch.equal(operator.to_dense(), found)
        same(operator @ found[0], found @ found[0])
        same(found, ggn, 0.1)
        loader = [(X[:1], y[:1]), (X[1:], y[1:])]
        same(hbp.operator(model.eval(), loss, loader, "fisher_sampled", mc_samples=4000).to_dense(),
             hbp.operator(model, loss, (X, y)).to_dense(), 0.1)
        model.train()


class Custom(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.inner, self.outer, self.factor = nn.Linear(2, 3), nn.Linear(3, 2), factor

    def forward(self, x):
        return self.outer(torch.tanh(Doubled.apply(self.inner(x)) / self.factor))


def test_custom_functions_go_by_double_backward():
    """Its backward is believed, as in training."""
    batch = double(3, 2), torch.tensor([0, 1, 1])
    model = Custom(2).double()
    operator = hbp.operator(model, nn.CrossEntropyLoss(), batch)
    assert not operator._products._kept[False].forward
    run = hbp.reference.Forward(model, nn.CrossEntropyLoss(), batch[:1], batch[1])
    same(operator.to_dense(), dense(run, "ggn"))


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_s_padding_has_a_row_of_zeros(kind, later):
    """As in `.backward()`; torch's forward mode counts it. In a loader it may come up in a later batch."""
    embedded = nn.Sequential(nn.Embedding(5, 2, padding_idx=1), nn.Tanh(), nn.Flatten(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        embedded[0].weight.normal_()
    X, y = torch.tensor([[0, 3, 2], [1, 1, 4]]), torch.tensor([1, 0])
    data = [(X[:1], y[:1]), (X[1:], y[1:])] if later else (X, y)
    operator = hbp.operator(embedded, nn.CrossEntropyLoss(), data, kind)
    plain = copy.deepcopy(embedded)
    plain[0].padding_idx = None
    expected = dense(hbp.reference.Forward(plain, nn.CrossEntropyLoss(), (X,), y), kind)
    expected[2:4], expected[:, 2:4] = 0, 0
    same(operator.to_dense(), expected)
    same(operator @ expected[0], expected @ expected[0])


class Twice(nn.Module):
    """Draws from a generator of its own: no two passes are alike."""

    def __init__(self):
        super().__init__()
        self.layer, self.own = nn.Linear(2, 2), torch.Generator().manual_seed(0)

    def forward(self, x):
        return self.layer(x) * torch.rand(1, generator=self.own, dtype=torch.float64)


def test_what_draws_anew_is_no_matrix():
    batch = double(3, 2), torch.tensor([0, 1, 1])
    for kind in ("ggn", "hessian"):
        with pytest.raises(hbp.ProofError, match="not those of a symmetric one"):
            hbp.operator(Twice().double(), nn.CrossEntropyLoss(), batch, kind)


def test_single_precision_and_wrappers():
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    batch = torch.randn(3, 2), torch.tensor([0, 1, 1])
    found = hbp.operator(nn.DataParallel(model), nn.CrossEntropyLoss(), batch, "hessian").to_dense()
    exact = hbp.operator(model.double(), nn.CrossEntropyLoss(), (batch[0].double(), batch[1]), "hessian").to_dense()
    assert found.dtype == torch.float32
    same(found.double(), exact, 1e-5)


class OtherWhenBatched(nn.Module):
    """Draws otherwise inside vmap, as torch's dropout does on a GPU."""

    def forward(self, x):
        batched = any(level.key() == TransformType.Vmap for level in get_interpreter_stack() or [])
        mask = torch.rand(2, *x.shape, dtype=x.dtype, device=x.device)[int(batched)]
        return x * mask.clamp(min=0.1)


@pytest.mark.parametrize("kind", ["ggn", "hessian", "fisher_empirical"])
def test_a_model_that_draws_otherwise_where_vectors_are_batched(kind):
    """Blocks of vectors go through one by one then: the operator is one matrix."""
    model = nn.Sequential(nn.Linear(3, 4), OtherWhenBatched(), nn.Tanh(), nn.Linear(4, 3)).double()
    X, y, loss = double(5, 3), torch.tensor([0, 1, 1, 0, 2]), nn.CrossEntropyLoss()
    operator = hbp.operator(model, loss, (X, y), kind, seed=3)
    found = operator.to_dense()
    same(found, dense(forward(operator, model, loss, (X,), y), kind))
    same(operator @ found[0], found @ found[0])
