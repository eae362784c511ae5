"""What training loops bring: batches that are not finite, autocast, gradients that are scaled, clipped, scheduled."""

import copy
import warnings

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.optim.models import chain, close, gradient, mean_loss, values
from tests.optim.test_changes import EVERY, moved
from tests.selection import few


@few(1, "further cases of one kind")
@pytest.mark.parametrize("make", EVERY)
def test_a_batch_that_is_not_finite_is_left_out(make):
    """At first, and later: parameters, averages and the number of steps stay; it is said once."""
    model, X, y = chain()
    twin = copy.deepcopy(model)
    optimizer, other = make(model, None), make(twin, None)
    before = values(model)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", hbp.NotFiniteWarning)
        for bad in (float("nan"), float("inf")):
            assert not optimizer.step(X * bad, y).isfinite()
            assert not moved(model, before)
            assert all(parameter.grad is None for parameter in model.parameters())
            optimizer.step(X, y)
            before = values(model)
    warned = [each for each in warned if each.category is hbp.NotFiniteWarning]
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert (optimizer.steps, optimizer.skipped) == (2, 2)
    for _ in range(2):
        other.step(X, y)
    for name, value in values(twin).items():
        assert torch.equal(value, before[name]), name


@few(2, "further cases of one kind")
@pytest.mark.parametrize("make", EVERY)
@pytest.mark.filterwarnings("ignore::hbpcompiler.NotFiniteWarning")
def test_a_batch_whose_gradient_alone_is_not_finite_is_left_out(make):
    """Of tanh of infinity the loss is finite."""
    model, X, y = chain()
    X[0, 0] = float("inf")
    optimizer, before = make(model, None), values(model)
    assert optimizer.step(X, y).isfinite()
    assert optimizer.skipped == 1
    assert not moved(model, before)


@few(2, "further cases of one kind")
@pytest.mark.parametrize("make", EVERY)
def test_gradients_of_a_closure_that_are_not_finite_are_left_out(make):
    model, X, y = chain()
    optimizer = make(model, None)
    before = values(model)

    def closure():
        optimizer.zero_grad()
        (mean_loss(model(X), y) * float("inf")).backward()

    with pytest.warns(hbp.NotFiniteWarning):
        optimizer.step(X, y, closure=closure)
    assert not moved(model, before)
    assert optimizer.steps == 0


def test_gradients_of_a_scaler():
    """Unscaled, they are the batch's; too large ones are left out by both, and the scaler lowers its scale."""
    model, X, y = chain()
    model, X = model.float(), X.float()
    twin = copy.deepcopy(model)
    plain = hbp.optim.KFLR(twin, None, lr=0.1, momentum=0.0, damping=0.3)
    plain.step(X, y)
    optimizer = hbp.optim.KFLR(model, None, lr=0.1, momentum=0.0, damping=0.3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def scaled(times=1.0):
        optimizer.zero_grad()
        loss = mean_loss(model(X), y) * times
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        return loss

    optimizer.step(X, y, closure=scaled)
    scaler.update()
    for name, value in values(model).items():
        close(value, values(twin)[name], name, 1e-5)
    assert scaler.get_scale() == 2.0**10
    before = values(model)
    with pytest.warns(hbp.NotFiniteWarning):
        optimizer.step(X, y, closure=lambda: scaled(1e38))
    scaler.update()
    assert not moved(model, before)
    assert scaler.get_scale() == 2.0**9


def test_a_preconditioner_between_scaler_and_optimizer():
    model, X, y = chain()
    model, X = model.float(), X.float()
    pre = hbp.optim.Preconditioner(model, None, "kflr", damping=0.3)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    pre.step(X, y)
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    before = values(model)
    for times in (1.0, 1e38):
        pre.gradient(X, y)
        sgd.zero_grad()
        scaler.scale(mean_loss(model(X), y) * times).backward()
        scaler.unscale_(sgd)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", hbp.NotFiniteWarning)
            pre.precondition()
        scaler.step(sgd)
        scaler.update()
        for name, value in values(model).items():
            close(value - before[name], -0.1 * expected[name], name, 1e-4)  # of the first, and nothing of the second
    assert pre.skipped == 1


def test_clipping_between_gradient_and_curvature_and_behind_it():
    model, X, y = chain()
    pre = hbp.optim.Preconditioner(model, None, "diag_ggn", damping=0.3)
    pre.step(X, y)
    direction = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    own = gradient(model, mean_loss, X, y)
    norm = torch.nn.utils.get_total_norm(list(own.values()))
    for name, parameter in model.named_parameters():
        parameter.grad = own[name]
    torch.nn.utils.clip_grad_norm_(model.parameters(), float(norm) / 4)
    pre.precondition()
    for name, parameter in model.named_parameters():
        close(parameter.grad, direction[name] / 4, name, 1e-5)  # torch adds 1e-6 to the norm
    pre.step(X, y)
    torch.nn.utils.clip_grad_value_(model.parameters(), 1e-3)
    assert max(float(parameter.grad.abs().max()) for parameter in model.parameters()) <= 1e-3


@few(1, "further cases of one kind")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype):
    """Gradients in half precision, parameters, averages and inverses in single; steps that find factors in single,
    too: nearly the steps of single precision."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    X, y = torch.randn(32, 6), torch.randint(3, (32,))
    steps = []
    for enabled in (False, True):
        own = copy.deepcopy(model)
        optimizer = hbp.optim.KFLR(own, None, lr=0.1, momentum=0.0, damping=0.3, update_every=2, invert_every=2)
        for number in range(2):
            with torch.autocast("cpu", dtype=dtype, enabled=enabled):
                loss = optimizer.step(X, y)
            steps.append(torch.cat([(value - before).flatten() for value, before in
                                    zip(own.parameters(), model.parameters(), strict=True)]).detach())
            assert loss.isfinite(), number
        assert all(parameter.dtype == torch.float32 for parameter in own.parameters())
        assert type(optimizer.curvature()["0.weight"]).__name__ == "Kronecker"
    close(steps[2], steps[0], "with factors", 1e-5)
    assert 0 < (steps[3] - steps[1]).norm() < 0.03 * steps[1].norm()


@few(2, "further cases of one kind")
@pytest.mark.parametrize("make", EVERY)
def test_schedulers_set_the_rate_and_groups_may_come_later(make):
    model, X, y = chain()
    optimizer = make(model, None, model[2].parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step == 1 else 1.0)
    optimizer.step(X, y)
    scheduler.step()
    before = values(model)
    optimizer.step(X, y)
    assert not moved(model, before)
    scheduler.step()
    optimizer.step(X, y)
    assert moved(model, before) == {"2.weight", "2.bias"}
    optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.01})
    before = values(model)
    optimizer.step(X, y)
    assert moved(model, before) == before.keys()


@few(1, "further cases of one kind")
@pytest.mark.parametrize("make", EVERY)
def test_every_optimizer_is_resumed_bit_equal(make):
    """In the middle of the intervals: after step 3 of updates every 2, inverses every 4."""
    once, X, y = chain()
    again = copy.deepcopy(once)
    optimizer = make(once, None)
    for _ in range(6):
        optimizer.step(X, y)
    optimizer = make(again, None)
    for _ in range(3):
        optimizer.step(X, y)
    state = copy.deepcopy(optimizer.state_dict())
    optimizer = make(again, None)
    optimizer.load_state_dict(state)
    for _ in range(3):
        optimizer.step(X, y)
    for name, value in values(once).items():
        assert torch.equal(value, values(again)[name]), name


@few(1, "one state_dict for all")
@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("before", [torch.float32, torch.float64])
def test_a_state_of_another_dtype_and_a_model_that_is_cast(make, before):
    """As with torch's optimizers the state takes the model's dtype; in the middle of an interval, and again later."""
    after = {torch.float32: torch.float64, torch.float64: torch.float32}[before]
    model, X, y = chain()
    model = model.to(before)
    optimizer = make(model, None)
    batches = [X + 0.1 * torch.randn_like(X) for _ in range(10)]  # averages of different float32 batches
    for X in batches[:3]:
        optimizer.step(X.to(before), y)
    other = copy.deepcopy(model).to(after)
    resumed = make(other, None)
    resumed.load_state_dict(optimizer.state_dict())
    cast, its_own = copy.deepcopy((model, optimizer))
    cast.to(after)
    for X in batches[3:]:
        optimizer.step(X.to(before), y)
        resumed.step(X.to(after), y)
        its_own.step(X.to(after), y)
    for name, value in values(model).items():
        close(values(other)[name].double(), value.double(), name, 1e-4)
        close(values(cast)[name].double(), value.double(), name, 1e-4)


@pytest.mark.parametrize("damping", [0.1, "bootstrap"])
def test_newton_leaves_out_a_batch_whose_values_overflow(damping):
    """The first time too, where nothing has been asked of the gradient alone before."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e18)
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = hbp.optim.Newton(model, nn.CrossEntropyLoss(), damping=damping)
    with pytest.warns(hbp.NotFiniteWarning):
        optimizer.step(torch.randn(6, 4), torch.randint(3, (6,)))
    assert optimizer.skipped == 1
    assert all(map(torch.equal, before, model.parameters()))
