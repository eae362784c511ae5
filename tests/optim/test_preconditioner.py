"""`Preconditioner` against dense linear algebra in float64."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.optim.averages import Averages
from hbpcompiler.optim.kinds import KINDS, with_factors
from hbpcompiler.values import Stored
from tests.optim.models import blocks, chain, close, flat, gradient, mean_loss, tokens, values, whole_ggn
from tests.selection import few, slow


def grads(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def signed(name, value):
    return value.abs() if name == "diag_h_abs" else value.clamp(min=0) if name == "diag_h_clip" else value


DIAGONALS = ["diag_ggn", "diag_h_abs", "diag_h_clip", "second_moment"]


@slow("optimizers whole")
def test_diagonals_of_two_batches():
    """Averages are weighted without bias: after two batches (1 - d) / (1 - d^2) of the newest."""
    for name in DIAGONALS:
        model, X, y = chain()
        _, other, labels = chain(1, samples=4)
        pre = hbp.optim.Preconditioner(model, None, name, damping=0.3, ema=0.6, update_every=1, invert_every=1)
        pre.step(other, labels)
        loss = pre.step(X, y)
        compiled = hbp.compile(model, mean_loss, [KINDS[name].quantity])
        first, second = compiled(other, labels)[KINDS[name].quantity], compiled(X, y)[KINDS[name].quantity]
        newest = 0.4 / (1 - 0.36)
        own = gradient(model, mean_loss, X, y)
        for parameter, found in grads(model).items():
            mean = signed(name, (1 - newest) * first[parameter] + newest * second[parameter])
            close(found, own[parameter] / (mean + 0.3), f"{name} {parameter}")
        close(loss, mean_loss(model(X), y).detach(), "loss")


@few(1, "further cases of one kind")
@pytest.mark.parametrize("name", ["kflr", "kfac_emp_reduce"])
def test_kronecker_factors_with_shared_damping_are_equations_28_and_29(name):
    model, X, y = tokens()
    pre = hbp.optim.Preconditioner(model, None, name, damping=0.2, update_every=1, invert_every=1, largest_factor=6)
    pre.step(X, y)
    own = gradient(model, mean_loss, X, y)
    result = hbp.compile(model, mean_loss, [name, KINDS[name].others], joint_bias=True)(X, y)
    diagonal = result[KINDS[name].others]
    for weight, bias in (("first.weight", "first.bias"), ("last.weight", "last.bias")):
        A, B = result[name][weight]
        pi = ((A.trace() / len(A)) / (B.trace() / len(B))).sqrt()
        A = A + pi * 0.2**0.5 * torch.eye(len(A)).double()
        B = B + 0.2**0.5 / pi * torch.eye(len(B)).double()
        joint = torch.cat([own[weight], own[bias].unsqueeze(1)], 1)
        expected = torch.linalg.solve(torch.kron(B, A), joint.flatten()).reshape(joint.shape)
        close(torch.cat([grads(model)[weight], grads(model)[bias].unsqueeze(1)], 1), expected, weight)
    for name in ("embedding.weight", "norm.weight", "norm.bias"):
        close(grads(model)[name], own[name] / (diagonal[name] + 0.2), name)


def test_kronecker_factors_with_exact_damping():
    model, X, y = chain()
    pre = hbp.optim.Preconditioner(model, None, "kflr", damping=0.2, split="exact", update_every=1, invert_every=1)
    pre.step(X, y)
    own = gradient(model, mean_loss, X, y)
    A, B = hbp.compile(model, mean_loss, ["kflr"], joint_bias=True)(X, y).kflr["0.weight"]
    joint = torch.cat([own["0.weight"], own["0.bias"].unsqueeze(1)], 1)
    dense = torch.kron(B, A) + 0.2 * torch.eye(len(A) * len(B)).double()
    expected = torch.linalg.solve(dense, joint.flatten()).reshape(joint.shape)
    close(model[0].weight.grad, expected[:, :-1], "weight")
    close(model[0].bias.grad, expected[:, -1], "bias")


def test_whole_blocks_with_a_damping_for_each():
    model, X, y = chain()
    dampings = {"*": 0.3, "0.*": 0.1}
    pre = hbp.optim.Preconditioner(model, None, "blocks", dampings, update_every=1, invert_every=1)
    pre.step(X, y)
    G, own = blocks(whole_ggn(model, mean_loss, X, y), model), gradient(model, mean_loss, X, y)
    for name, found in grads(model).items():
        damping = 0.1 if name.startswith("0") else 0.3
        dense = G[name] + damping * torch.eye(len(G[name])).double()
        close(found.flatten(), torch.linalg.solve(dense, own[name].flatten()), name)


def test_whole_blocks_of_two_batches():
    model, X, y = chain()
    _, other, labels = chain(1, samples=4)
    pre = hbp.optim.Preconditioner(model, None, "blocks", 0.3, ema=0.6, update_every=1, invert_every=1)
    pre.step(other, labels)
    pre.step(X, y)
    newest = 0.4 / (1 - 0.36)
    G = (1 - newest) * whole_ggn(model, mean_loss, other, labels) + newest * whole_ggn(model, mean_loss, X, y)
    own = gradient(model, mean_loss, X, y)
    for name, block in blocks(G, model).items():
        damped = block + 0.3 * torch.eye(len(block)).double()
        close(grads(model)[name].flatten(), torch.linalg.solve(damped, own[name].flatten()), name)


@slow("many steps")
def test_sums_have_the_fisher_matrix_of_sums():
    """A sum's curvature is N times that of the mean: with N times the damping the step is the same."""
    for name in ("second_moment", "kfac_emp", "kflr", "diag_ggn"):
        model, X, y = chain()
        hbp.optim.Preconditioner(model, None, name, 0.1, split="exact").step(X, y)
        mean = grads(model)
        hbp.optim.Preconditioner(model, nn.CrossEntropyLoss(reduction="sum"), name, 0.1 * len(X),
                                 split="exact").step(X, y)
        for parameter, found in grads(model).items():
            close(found, mean[parameter], f"{name} {parameter}")


def test_steps_between_updates_compute_the_gradient_alone_with_the_old_inverse():
    model, X, y = chain()
    pre = hbp.optim.Preconditioner(model, None, "diag_ggn", damping=0.3, update_every=2, invert_every=4)
    calls = []
    pre._running.programs.with_curvature = lambda *given, real=pre._running.programs.with_curvature: (
        calls.append(pre.steps), real(*given))[1]
    h = []
    for step in range(5):
        pre.step(X, y)
        h.append(hbp.compile(model, mean_loss, ["diag_ggn"])(X, y).diag_ggn["0.weight"])
        if step < 4:
            close(model[0].weight.grad, gradient(model, mean_loss, X, y)["0.weight"] / (h[0] + 0.3), f"step {step}")
        with torch.no_grad():
            model[0].weight.add_(0.1)
    assert calls == [0, 2, 4]
    weights = torch.tensor([0.95**2, 0.95, 1.0], dtype=torch.float64) * 0.05 / (1 - 0.95**3)
    mean = weights[0] * h[0] + weights[1] * h[2] + weights[2] * h[4]
    with torch.no_grad():
        model[0].weight.sub_(0.1)
    close(model[0].weight.grad, gradient(model, mean_loss, X, y)["0.weight"] / (mean + 0.3), "step 4")


def test_gradients_of_another_origin():
    model, X, y = chain()
    pre = hbp.optim.Preconditioner(model, None, "diag_ggn", damping=0.3)
    pre.gradient(X, y)
    assert model[0].weight.grad is None
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    pre.precondition()
    h = hbp.compile(model, mean_loss, ["diag_ggn"])(X, y).diag_ggn
    for name, found in grads(model).items():
        close(found, 1 / (h[name] + 0.3), name)


def test_kl_clip_bounds_the_step_in_the_norm_of_curvature():
    model, X, y = chain()
    hbp.optim.Preconditioner(model, None, "kflr", damping=0.3).step(X, y)
    free, own = flat(grads(model)), flat(gradient(model, mean_loss, X, y))
    bound = 0.25 * 0.1**2 * float(free @ own)
    hbp.optim.Preconditioner(model, None, "kflr", damping=0.3, kl_clip=bound, lr=0.1).step(X, y)
    close(flat(grads(model)), 0.5 * free, "half as long")
    hbp.optim.Preconditioner(model, None, "kflr", damping=0.3, kl_clip=10 * bound, lr=0.1).step(X, y)
    close(flat(grads(model)), free, "short enough")
    hbp.optim.Preconditioner(model, None, "kflr", damping=0.3, kl_clip=bound, lr=0.0).step(X, y)  # where schedules end
    close(flat(grads(model)), free, "no step is short")


@slow("many steps")
def test_a_run_that_is_resumed_is_bit_equal_and_draws_are_its_own():
    def run(pre, optimizer, steps, X, y):
        for _ in range(steps):
            pre.step(X, y)
            optimizer.step()

    model, X, y = tokens()
    once, again = model, copy.deepcopy(model)
    options = {"curvature": "kfac", "damping": 0.1, "update_every": 2, "invert_every": 4, "largest_factor": 6}
    pre, sgd = hbp.optim.Preconditioner(once, None, **options), torch.optim.SGD(once.parameters(), lr=0.1)
    run(pre, sgd, 7, X, y)

    state = torch.get_rng_state()
    pre, sgd = hbp.optim.Preconditioner(again, None, **options), torch.optim.SGD(again.parameters(), lr=0.1)
    run(pre, sgd, 3, X, y)
    file = io.BytesIO()
    torch.save(pre.state_dict(), file)
    file.seek(0)
    pre = hbp.optim.Preconditioner(again, None, **options)
    pre.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    run(pre, sgd, 4, X, y)
    for name, value in values(once).items():
        assert torch.equal(value, values(again)[name]), name


def test_parameters_that_become_trainable_later():
    model, X, y = chain()
    model[0].requires_grad_(False)
    pre = hbp.optim.Preconditioner(model, None, "kflr", damping=0.3, split="exact", update_every=5, invert_every=5)
    pre.step(X, y)
    assert model[0].weight.grad is None
    model[0].requires_grad_(True)
    pre.step(X, y)
    own = gradient(model, mean_loss, X, y)
    A, B = hbp.compile(model, mean_loss, ["kflr"], joint_bias=True)(X, y).kflr["0.weight"]
    joint = torch.cat([own["0.weight"], own["0.bias"].unsqueeze(1)], 1)
    dense = torch.kron(B, A) + 0.3 * torch.eye(len(A) * len(B)).double()
    close(model[0].weight.grad, torch.linalg.solve(dense, joint.flatten()).reshape(joint.shape)[:, :-1], "weight")
    model[2].requires_grad_(False)
    pre.step(X, y)
    assert model[2].weight.grad is not None  # what was there stays: the parameter is not the preconditioner's now


def test_a_batch_that_is_not_finite_does_not_enter_the_average():
    model, X, y = chain()
    pre = hbp.optim.Preconditioner(model, None, "diag_ggn", damping=0.3, update_every=1, invert_every=1)
    pre.step(X, y)
    before = pre.curvature()["0.weight"].values.clone()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        pre.step(X * float("inf"), y)
        pre.step(X * float("nan"), y)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert (pre.steps, pre.skipped) == (1, 2)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(pre.curvature()["0.weight"].values, before)


def test_averages_without_forgetting_are_means():
    averages = Averages(1.0)
    for value in (1.0, 2.0, 6.0):
        averages.update({("a", ""): torch.tensor([value])})
    assert averages.means["a", ""].item() == pytest.approx(3.0)


def test_which_parameters_have_factors():
    stored = {"vocabulary": Stored((100, 4), None, "in, out"), "layer.weight": Stored((3, 4), None, "out, in"),
              "layer.bias": Stored((3,), None, ""), "norm.weight": Stored((4,), None, ""),
              "position": Stored((1, 9, 4), None, "")}
    assert with_factors(stored, 50) == {"layer.weight", "layer.bias"}
    assert with_factors(stored, 100) == {"layer.weight", "layer.bias", "vocabulary"}


def test_bad_input_is_one_error_and_leaves_the_gradient():
    model, X, y = chain()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    for wrong, words in (({"curvature": "fisher"}, "curvature 'fisher' is unknown"),
                         ({"damping": 0.0, "ema": 1.5}, "ema must be a number"),
                         ({"damping": 0.0, "ema": 1.5}, "damping must be a number, above 0, not 0.0"),
                         ({"invert_every": 15, "update_every": 10}, "must be a multiple of update_every=10"),
                         ({"damping": {"0.*": 1.0}}, "there is none for 2.weight, 2.bias"),
                         ({"damping": {"x.*": 1.0}}, "'x.\\*' matches no parameter"),
                         ({"split": "half"}, "split 'half' is unknown"),
                         ({"kl_clip": -1.0}, "kl_clip must be a number"),
                         ({"quantities": ["grad"]}, "quantities: set by the curvature"),
                         ({"learning_rate": 0.1}, "learning_rate: no argument here, and no option of hbp.compile")):
        with pytest.raises(hbp.CompileError, match=words):
            hbp.optim.Preconditioner(model, None, **wrong)
    with pytest.raises(hbp.InputError, match="no batch has been seen"):
        hbp.optim.Preconditioner(model, None).precondition()
    with pytest.raises(hbp.InputError, match="no curvature yet"):
        hbp.optim.Preconditioner(model, None).curvature()
    pre = hbp.optim.Preconditioner(nn.Sequential(model, nn.BatchNorm1d(2)).double(), None)
    with pytest.raises(hbp.UnsupportedOpError, match="batch norm in train mode"):
        pre.step(X, y)
    state = hbp.optim.Preconditioner(model, None, "kflr").state_dict()
    with pytest.raises(hbp.InputError, match="curvature='kflr', not 'kfac'"):
        hbp.optim.Preconditioner(model, None).load_state_dict(state)
    with pytest.raises(hbp.InputError, match="not the state"):
        hbp.optim.Preconditioner(model, None).load_state_dict({})
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))


def test_precondition_without_a_gradient():
    """It did nothing, and a training loop that lacks its backward pass went nowhere."""
    model, (X, y) = nn.Linear(4, 3), (torch.randn(6, 4), torch.randint(3, (6,)))
    pre = hbp.optim.Preconditioner(model, nn.CrossEntropyLoss(), "diag_ggn")
    _, gradient = pre.gradient(X, y)
    assert [*gradient] == ["weight", "bias"]
    with pytest.raises(hbp.InputError, match=r"no parameter has a gradient: call loss\.backward\(\) first, or step"):
        pre.precondition()
    nn.functional.cross_entropy(model(X), y).backward()
    pre.precondition()
    assert model.weight.grad is not None
