"""What happens to optimizers when their model's parameters are frozen, thawed, shared, or without a gradient."""

import copy
import pickle

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.optim.models import chain, close, gradient, mean_loss, tokens, values
from tests.selection import few

KFAC_LIKE = [lambda *given: hbp.optim.KFLR(*given, lr=0.1, momentum=0.0, damping=0.3, split="exact", update_every=2,
                                           invert_every=4),
             lambda *given: hbp.optim.EKFAC(*given, lr=0.1, momentum=0.0, damping=0.3, curvature="ekfac_exact",
                                            update_every=2, invert_every=4)]
EVERY = [*KFAC_LIKE, lambda *given: hbp.optim.Diagonal(*given, lr=0.1), lambda *given: hbp.optim.BlockNewton(*given),
         lambda *given: hbp.optim.Newton(*given, damping=1.0)]


def moved(model, before):
    return {name for name, value in values(model).items() if not torch.equal(value, before[name])}


@few(1, "one base class for all")
@pytest.mark.parametrize("make", EVERY)
def test_a_parameter_moves_while_it_is_trainable(make):
    """A bias apart from its weight, a weight from its bias, a whole layer: frozen and thawed again."""
    model, X, y = chain()
    optimizer = make(model, None)
    named = dict(model.named_parameters())
    for frozen in ([], ["0.bias"], [], ["2.weight"], ["0.weight", "0.bias"], [], []):
        for name, parameter in named.items():
            parameter.requires_grad_(name not in frozen)
        before = values(model)
        optimizer.step(X, y)
        assert moved(model, before) == named.keys() - set(frozen), frozen


@pytest.mark.parametrize("make", KFAC_LIKE)
def test_weights_alone_are_divided_by_their_block_with_the_biases(make):
    model, X, y = chain()
    before, own = values(model), gradient(model, mean_loss, X, y)
    optimizer = make(model, None, [model[0].weight, model[2].weight])
    optimizer.step(X, y)
    assert moved(model, before) == {"0.weight", "2.weight"}
    H = optimizer.curvature()
    whole = {name: own[name] if name.endswith("weight") else torch.zeros_like(own[name]) for name in own}
    step = H.solve(whole, damping=0.3)
    for name in ("0.weight", "2.weight"):
        close(values(model)[name] - before[name], -0.1 * step[name], name, 1e-7)


def test_a_gradient_of_one_part_of_a_block_is_kept():
    model, X, y = chain()
    pre = hbp.optim.Preconditioner(model, None)
    pre.gradient(X, y)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    pre.precondition()
    assert model[0].weight.grad.abs().sum() > 0
    assert model[0].bias.grad is None


@few(1, "one base class for all")
@pytest.mark.parametrize("make", EVERY)
def test_copies_and_pickles_go_on_alike(make):
    model, X, y = chain()
    optimizer = make(model, None)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.step(X, y)
    for other, twin in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        twin.step(X, y)
        assert other is not model
        found = values(other)
    optimizer.step(X, y)
    for name, value in values(model).items():
        close(found[name], value, name)


def test_a_closure_may_not_bring_gradients_without_curvature():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.aside = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()

        def forward(self, x):
            return self.main(x)

    _, X, y = chain()
    model = Two()
    for make in EVERY:
        optimizer = make(model, None)
        before = values(model)

        def closure(optimizer=optimizer):
            optimizer.zero_grad()
            (mean_loss(model(X), y) + model.aside(X).sum()).backward()

        with pytest.raises(hbp.InputError, match=r"aside\.weight, aside\.bias a gradient"), \
                pytest.warns(hbp.UnusedParametersWarning):
            optimizer.step(X, y, closure=closure)
        assert not moved(model, before)


@pytest.mark.parametrize("curvature", ["ekfac", "ekfac_exact", "ekfac_emp"])
def test_a_batch_that_is_not_finite_leaves_ekfac_as_it_was(curvature):
    model, X, y = chain()
    pre = hbp.optim.Preconditioner(model, None, curvature, update_every=1, invert_every=2)
    for _ in range(2):
        pre.step(X, y)
    with pytest.warns(hbp.NotFiniteWarning):
        pre.step(X * float("nan"), y)
    pre.step(X, y)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_tied_embeddings_have_the_diagonal():
    model, X, y = tokens()
    model.last = nn.Linear(4, 7, bias=False).double()
    model.last.weight = model.embedding.weight
    model.forward = lambda x: model.last(torch.tanh(model.norm(model.embedding(x)).mean(1)))
    model.first = None
    pre = hbp.optim.Preconditioner(model, None, "kfac")
    pre.step(X, y)
    assert type(pre.curvature()["embedding.weight"]).__name__ == "Diagonal"


def test_named_parameters_are_taken_as_torch_takes_them():
    model, X, y = chain()
    before = values(model)
    hbp.optim.KFAC(model, None, model.named_parameters()).step(X, y)
    assert moved(model, before) == before.keys()


@few(2, "further cases of one kind")
@pytest.mark.parametrize("make", EVERY)
def test_a_number_that_no_step_can_be_made_with_is_refused_whenever_it_is_set(make):
    """By hand, or by a scheduler, after steps that were right; what is right again goes on."""
    model, X, y = chain()
    optimizer = make(model, None)
    optimizer.step(X, y)
    before, rate = values(model), optimizer.param_groups[0]["lr"]
    for value in (float("nan"), float("inf"), -0.1, "0.1", None):
        optimizer.param_groups[0]["lr"] = value
        with pytest.raises(hbp.CompileError, match="lr must be a number, at least 0"):
            optimizer.step(X, y)
        assert not moved(model, before)
    assert optimizer.steps == 1
    optimizer.param_groups[0]["lr"] = torch.tensor(rate)
    optimizer.step(X, y)
    assert moved(model, before)


def test_a_preconditioners_numbers_are_looked_at_in_each_step():
    model, X, y = chain()
    pre = hbp.optim.Preconditioner(model, None)
    pre.step(X, y)
    for name, value in (("damping", float("nan")), ("damping", {"*": 0.0}), ("lr", float("nan")), ("kl_clip", -1.0)):
        right = getattr(pre, name)
        setattr(pre, name, value)
        with pytest.raises(hbp.CompileError, match=rf"this step cannot be made:\s.*{name}"):
            pre.step(X, y)
        setattr(pre, name, right)
    assert pre.steps == 1


def test_what_the_quadratic_model_finds_cannot_be_scheduled():
    """Before the first step, after it, and after its state was loaded."""
    model, X, y = chain()
    optimizer = hbp.optim.KFAC(model, None)
    for _ in range(2):
        for make in (lambda: torch.optim.lr_scheduler.StepLR(optimizer, 1),
                     lambda: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10, cycle_momentum=False)):
            with pytest.raises(hbp.CompileError, match="a scheduler has nothing to schedule here: lr=None leaves"):
                make()
        optimizer.step(X, y)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step(X, y)
    optimizer.param_groups[0]["lr"] = 0.1
    before = values(model)
    with pytest.raises(hbp.CompileError, match=r"lr has been set to 0\.1, but lr=None of this optimizer leaves it"):
        optimizer.step(X, y)
    with pytest.raises(hbp.CompileError, match=r"momentum has been set to 0\.5"):
        hbp.optim.KFAC(model, None, [{"params": list(model.parameters()), "momentum": 0.5}])
    cycle = hbp.optim.KFAC(model, None, lr=0.1)
    torch.optim.lr_scheduler.CyclicLR(cycle, 0.1, 0.2)  # it cycles the momentum, too
    with pytest.raises(hbp.CompileError, match=r"momentum has been set to 0\.9"):
        cycle.step(X, y)
    assert not moved(model, before)


def wide(width):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 3)).double()


BATCH = torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % 3


@pytest.mark.parametrize("make", [hbp.optim.Preconditioner, hbp.optim.KFAC, hbp.optim.Diagonal, hbp.optim.EKFAC])
def test_a_state_of_other_shapes_is_refused(make):
    known, other = make(wide(4)), make(wide(5))
    known.step(*BATCH)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(hbp.InputError, match=r"0.weight is \[5, 3\] here and \[4, 3\] there"):
        other.load_state_dict(known.state_dict())
    assert str(other.state_dict()) == str(before)
    with pytest.raises(hbp.InputError, match="is not the state of"):
        other.load_state_dict(None)


def test_a_refused_state_of_some_layers_changes_nothing():
    """What does not fit is a layer that is in no group."""
    known, other = (hbp.optim.KFAC(model, None, model[0].parameters(), lr=lr, momentum=0.9) for model, lr in (
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).double(), 0.1),
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5)).double(), 0.5)))
    known.step(*BATCH)
    with pytest.raises(hbp.InputError, match=r"2.weight is \[5, 4\] here and \[3, 4\] there"):
        other.load_state_dict(known.state_dict())
    assert (other.steps, other.param_groups[0]["lr"], dict(other.state)) == (0, 0.5, {})


@few(1, "further cases of one kind")
@pytest.mark.parametrize("curvature", ["kflr", "diag_ggn"])
def test_a_layer_of_another_shape_begins_anew(curvature):
    model = wide(4)
    options = {"curvature": curvature, "damping": 0.1, "split": "exact"} if curvature == "kflr" else {
        "curvature": curvature, "damping": 0.1}
    running = hbp.optim.Preconditioner(model, invert_every=10, **options)
    running.step(*BATCH)
    model[2] = nn.Linear(4, 5).double()
    running.step(*BATCH)
    new = hbp.optim.Preconditioner(model, ema=0.0, **options)
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    new.step(*BATCH)
    for name in ("2.weight", "2.bias"):
        torch.testing.assert_close(model.get_parameter(name).grad, expected[name])


def test_parameters_that_are_the_models_no_longer():
    model = wide(4)
    optimizer = hbp.optim.KFAC(model)
    optimizer.step(*BATCH)
    model.load_state_dict(wide(4).state_dict(), assign=True)
    with pytest.raises(hbp.CompileError, match="4 of its 4 parameters are the model's no longer"):
        optimizer.step(*BATCH)


def test_gradients_lie_as_parameters_do():
    model = wide(4)
    hbp.optim.Preconditioner(model).step(*BATCH)
    for parameter in model.parameters():
        assert parameter.grad.stride() == parameter.stride()
        assert not parameter.grad._is_view()
    model.float()
    assert hbp.compile(model, None, ["grad"])(BATCH[0].float(), BATCH[1]).loss.isfinite()
