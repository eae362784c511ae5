"""Right programs are proven, without a false alarm, and nothing of the user's changes."""

import copy
import random

import pytest
import torch
from hypothesis import given
from torch import nn
from torch.utils.checkpoint import checkpoint

import hbpcompiler as hbp
from hbpcompiler.calls.programs import Programs
from hbpcompiler.compiler.prove.comparison import FEW_DIGITS, NOISE_RUNS, TIMES_NOISE, compared, gap
from hbpcompiler.compiler.prove.draws import Draws
from hbpcompiler.compiler.prove.noise import Noise
from hbpcompiler.compiler.prove.own_step import own_step
from hbpcompiler.compiler.stages import PROVE
from hbpcompiler.compiler.trace.batch import batch_of
from tests import networks
from tests.graph_models import FEW_MODELS, made
from tests.selection import few

CPU = torch.device("cpu")


def chain(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), *layers, nn.Linear(5, 3))


def batch(samples=6):
    torch.manual_seed(1)
    return torch.randn(samples, 4), torch.arange(samples) % 3


def compiled_and_proven(model, *data, loss=None, quantities=("grad",), **options):
    compiled = hbp.compile(model, loss, list(quantities), example_inputs=data, **options)
    assert PROVE in compiled._current().seconds.of
    return compiled


@given(networks.settings_of(networks.dense_chains()))
def test_random_chains_in_both_dtypes(setting):
    model, loss, X, y = setting
    for dtype in (torch.float64, torch.float32):
        data = X.to(dtype), (y.to(dtype) if y.is_floating_point() else y)
        compiled_and_proven(model.to(dtype), *data, loss=loss.to(dtype), quantities=["batch_grad", "diag_h"])


@few(1, "other graphs")
@pytest.mark.parametrize("name", FEW_MODELS)
def test_graphs_in_small_dtypes(name):
    model, x, y = made(name)
    for dtype in (torch.float32, torch.bfloat16):
        data = (x.to(dtype) if x.is_floating_point() else x), y
        compiled = compiled_and_proven(copy.deepcopy(model).to(dtype), *data, quantities=["diag_ggn"])
        table = compiled.verify(*data, full=False)
        assert table.agrees, str(table)
        assert set(table.errors) == {"loss", "output", "grad"}


class Restless(nn.Module):
    """Its forward sets attributes, overwrites its input and a buffer, and draws."""

    def __init__(self):
        super().__init__()
        self.layer, self.dropout = nn.Linear(4, 3), nn.Dropout(0.3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.last = x.mul_(2)
        self.calls = getattr(self, "calls", 0) + 1
        self.seen += 1
        return self.dropout(self.layer(x))


def test_nothing_of_the_users_changes():
    model, (X, y) = Restless(), batch()
    compiled = hbp.compile(model, quantities=["grad", "diag_h"], example_inputs=(X, y), verify=False)
    model.layer.weight.grad = torch.ones(3, 4)
    numbers, attributes, given = copy.deepcopy(model.state_dict()), sorted(vars(model)), X.clone()
    torch.manual_seed(3)
    states = torch.get_rng_state(), random.getstate()
    assert compiled.verify(X, y).agrees
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert sorted(vars(model)) == attributes
    assert torch.equal(X, given)
    assert torch.equal(model.layer.weight.grad, torch.ones(3, 4))
    assert model.layer.bias.grad is None
    assert model.training
    assert all(torch.equal(value, numbers[name]) for name, value in model.state_dict().items())


def test_the_first_calls_draws_are_those_without_a_proof():
    model, data = chain(nn.Dropout(0.5)), batch()
    losses = []
    for verify in (True, False):
        compiled = hbp.compile(model, quantities=["grad"], verify=verify)
        torch.manual_seed(5)
        losses.append(compiled(*data).loss)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("way", ["examples", "call", "weighted call"])
def test_the_first_run_is_the_proofs(monkeypatch, way):
    runs, own = [], Programs._run
    monkeypatch.setattr(Programs, "_run", lambda *given, **named: runs.append(1) or own(*given, **named))
    model, data = chain(nn.Tanh()), batch()
    if way == "examples":
        compiled_and_proven(model, *data, quantities=["grad", "diag_h"])
    else:
        weights = {"sample_weights": torch.rand(6)} if way == "weighted call" else {}
        hbp.compile(model, quantities=["grad", "diag_h"])(*data, **weights)
    assert len(runs) == 1


def test_a_model_without_gradients_where_it_is_called():
    model, data = chain(nn.Tanh()), batch()
    with torch.no_grad():
        compiled_and_proven(model, *data)
    compiled = hbp.compile(model, quantities=["diag_h"])
    with torch.inference_mode():
        compiled(*data)


def test_checkpoints_inside_the_model():
    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.layers = nn.Linear(4, 4), chain(nn.Tanh())

        def forward(self, x):
            return checkpoint(self.layers, self.stem(x), use_reentrant=True)

    model, data = Kept(), batch()
    compiled_and_proven(model, *data)
    assert all(parameter.grad is None for parameter in model.parameters())


class InReverse(torch.autograd.Function):
    """y = x + f(x + 1), whose backward runs f again and adds up its parameters' gradients by itself."""

    @staticmethod
    def forward(ctx, x, f):
        ctx.save_for_backward(x)
        ctx.f = f
        with torch.no_grad():
            return x + f(x + 1)

    @staticmethod
    def backward(ctx, slope):
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            (x + ctx.f(x + 1)).backward(slope)
        return x.grad, None


class Kept(torch.autograd.Function):
    """Keeps a graph of its own for its backward."""

    @staticmethod
    def forward(ctx, x):
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_()
            ctx.y = ctx.x * torch.sigmoid(ctx.x)
        return ctx.y.detach()

    @staticmethod
    def backward(ctx, slope):
        return torch.autograd.grad(ctx.y, ctx.x, slope)[0]


class Activation(nn.Module):
    def forward(self, x):
        return Kept.apply(x)


def test_detached_within_a_custom_function():
    model, (X, y) = chain(Activation()).double(), batch()
    result = compiled_and_proven(model, X.double(), y, quantities=["grad", "diag_h"])(X.double(), y)
    own = nn.Sequential(model[0], nn.SiLU(), model[2])
    expected = hbp.compile(own, quantities=["diag_h"])(X.double(), y)
    for name, value in expected.diag_h.items():
        torch.testing.assert_close(result.diag_h[name], value)


kept_apply = InReverse.apply


@pytest.mark.parametrize(("stem", "function"), [
    (nn.Linear(4, 4), kept_apply),
    (nn.Identity(), lambda x, layers: checkpoint(layers, x.requires_grad_(), use_reentrant=True)),
], ids=["reversible", "checkpointed inputs"])
def test_a_backward_that_adds_up_gradients_by_itself(stem, function):
    """They are no others for the parameters, and are none of the values between these and the loss."""
    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.layers, self.head = stem, nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(function(self.stem(x), self.layers))

    model, data = Kept().double(), batch()
    data = (data[0].double(), data[1])
    result = compiled_and_proven(model, *data)(*data)
    assert all(parameter.grad is None for parameter in model.parameters())
    nn.CrossEntropyLoss()(model(*data[:1]), data[1]).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(result.grad[name], parameter.grad)
    model.layers[0].weight.register_hook(lambda g: 2 * g)
    with pytest.raises(hbp.ProofError, match=r"'layers.0.weight': remove it"):
        compiled_and_proven(model, *data)


def test_with_a_memory_budget_few_samples_are_enough():
    compiled = compiled_and_proven(chain(nn.Tanh()), *batch(40), memory_budget="1MiB")
    assert compiled.verify(*batch(40)).agrees


def test_numbers_that_are_noise_are_allowed_what_noise_is():
    """A sum of terms that cancel, and one that does not."""
    torch.manual_seed(0)
    noise, value = 1e-5 * torch.randn(NOISE_RUNS + 1, 50), torch.ones(50)
    right = {("grad", "cancelled"): noise[0], ("grad", "other"): value}

    def again(run):
        return {("grad", "cancelled"): noise[run + 1], ("grad", "other"): value + noise[run + 1]}

    def lines(found):
        return {line.parameter: line.agrees for line in compared(found, right, 1e-10, again)}

    largest = float(noise.abs().max())
    assert lines({("grad", "cancelled"): noise[0] + largest, ("grad", "other"): value + largest}) == {
        "cancelled": True, "other": True}
    wrong = 3 * TIMES_NOISE * largest
    assert lines({("grad", "cancelled"): noise[0] + wrong, ("grad", "other"): value + wrong}) == {
        "cancelled": False, "other": False}
    assert lines({("grad", "other"): value}) == {"cancelled": True, "other": True}
    assert lines({}) == {"cancelled": True, "other": False}


def test_a_gradient_that_is_zero_whatever_the_numbers_are_has_the_rounding_of_terms_that_cancel():
    """A softmax over one class: its probability is 1, the slope 1 - 1, and no moved number shows how that is rounded.
    The program's own slope, w * p - w, need not be zero to the last digit."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    data = torch.randn(3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    given, draws = batch_of(data), Draws.now(torch.device("cpu"))
    loss = nn.CrossEntropyLoss()
    eps = torch.finfo(torch.float64).eps
    right = {("grad", name): value for name, value in own_step(model, loss, given, draws).gradients.items()}
    assert all(not value.any() for value in right.values())

    def again(run):
        noisy = own_step(model, loss, given, draws, Noise(eps, run))
        return {("grad", name): value for name, value in noisy.gradients.items()}

    def agrees(error):
        found = {key: value + error for key, value in right.items()}
        return [line.agrees for line in compared(found, right, eps, again)]

    assert all(agrees(eps / 3))
    assert not any(agrees(1e-13))
    assert torch.equal(Noise(eps, 0).of_slope(data[0].sum(), [data[0]], 3), torch.zeros((), dtype=torch.float64))
    compiled_and_proven(model, *data, loss=loss)


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, FEW_DIGITS), (torch.float32, 1)])
def test_a_gradient_that_is_zero_but_for_rounding_is_allowed_a_few_last_digits_of_the_whole(dtype, digits):
    """A bias before a norm, whose terms are as large as the other gradients; in float32 a fault could be so small."""
    eps = torch.finfo(dtype).eps
    digit = 9 * eps
    right = {("grad", "bias"): torch.full((3,), 0.3 * digit, dtype=dtype),
             ("grad", "weight"): torch.full((3, 2), 9.0, dtype=dtype)}

    def agrees(error):
        found = {**right, ("grad", "bias"): right["grad", "bias"] + error}
        return [line.agrees for line in compared(found, right, eps)]

    assert agrees(0.9 * digits * digit) == [True, True]
    assert agrees(1.1 * digits * digit) == [False, True]


def test_the_models_own_step_is_the_users():
    model, (X, y) = chain(nn.Tanh()).double(), batch()
    data, loss = batch_of((X.double(), y)), nn.CrossEntropyLoss()
    step = own_step(model, loss, data, Draws.now(CPU))
    expected = torch.autograd.grad(loss(model(X.double()), y), list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(step.gradients.values(), expected, strict=True))
    assert not step.random
    moved = own_step(model, loss, data, Draws.now(CPU), Noise(1e-9, 0))
    change = gap(moved.gradients["0.weight"], step.gradients["0.weight"], strict=False)[0]
    assert 1e-12 < change < 1e-7
