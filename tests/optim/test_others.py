"""`Diagonal`, `BlockNewton` and `Newton` against dense linear algebra."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.optim.models import (
    blocks,
    chain,
    close,
    flat,
    gradient,
    mean_loss,
    tokens,
    values,
    whole_ggn,
    whole_hessian,
)

EACH = {"update_every": 1, "ema": 0.6}


def moved(model, before):
    return {name: value - before[name] for name, value in values(model).items()}


def expected_steps(rule, gradients, curvatures):
    """Of the last step, by the rules' formulas."""
    newest = 0.4 / (1 - 0.36)
    averaged = [h.square() for h in curvatures] if rule == "adahessian" else curvatures
    h = averaged[0] if len(averaged) == 1 else (1 - newest) * averaged[0] + newest * averaged[1]
    m = 0.0
    for own in gradients:
        m = 0.7 * m + 0.3 * own
    unbiased = m / (1 - 0.7 ** len(gradients))
    if rule == "sophia":
        return (m / (0.5 * h).clamp(min=1e-2)).clamp(-1, 1)
    return unbiased / (h.sqrt() ** 0.5 + 1e-2) if rule == "adahessian" else unbiased / (h + 0.3)


@pytest.mark.parametrize(("rule", "curvature"), [("damped", "diag_h_abs"), ("sophia", "diag_ggn"),
                                                 ("adahessian", "diag_h_clip")])
def test_diagonal(rule, curvature):
    model, X, y = chain()
    optimizer = hbp.optim.Diagonal(model, None, lr=0.2, rule=rule, curvature=curvature, momentum=0.7, damping=0.3,
                                   clip_scale=0.5, eps=1e-2, power=0.5, weight_decay=0.1, **EACH)
    program = hbp.compile(model, mean_loss, ["diag_h" if "_h_" in curvature else "diag_ggn"])
    gradients, curvatures = [], []
    for _ in range(2):
        result = program(X, y)
        h = result["diag_h" if "_h_" in curvature else "diag_ggn"]
        gradients.append(gradient(model, mean_loss, X, y))
        curvatures.append(h)
        before = values(model)
        optimizer.step(X, y)
        for name, step in moved(model, before).items():
            made = [each[name] for each in curvatures]
            if rule != "adahessian":
                mean = made[0] if len(made) == 1 else (0.6 * made[0] + made[1]) / 1.6
                made = [mean.abs() if curvature.endswith("abs") else mean]
            expected = expected_steps(rule, [each[name] for each in gradients], made)
            close(step, -0.2 * (expected + 0.1 * before[name]), f"{rule} {name}")


@pytest.mark.parametrize("is_old", [False, True])
def test_a_momentum_that_is_scheduled_leaves_the_mean_without_bias(is_old):
    """Each gradient counts by what the momenta of its own and later steps leave of it; a state of before goes on."""
    model, X, y = chain()
    optimizer = hbp.optim.Diagonal(model, None, curvature="diag_ggn", damping=0.3, ema=0.0, update_every=1)
    momenta, gradients = [0.95, 0.95, 0.9, 0.5], []
    for step, momentum in enumerate(momenta):
        optimizer.param_groups[0]["momentum"] = momentum
        weights = [(1 - momenta[s]) * math.prod(momenta[s + 1:step + 1]) for s in range(step + 1)]
        gradients.append(gradient(model, mean_loss, X, y))
        h = hbp.compile(model, mean_loss, ["diag_ggn"])(X, y).diag_ggn
        before = values(model)
        optimizer.step(X, y)
        for name, moved_by in moved(model, before).items():
            mean = sum(w * own[name] for w, own in zip(weights, gradients, strict=True)) / sum(weights)
            close(moved_by, -0.1 * mean / (h[name] + 0.3), f"step {step}, {name}")
        if is_old and step == 0:
            for state in optimizer.state.values():
                del state["weight"]
                state["updates"] = 1


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_block_newton_run_to_convergence_is_the_dense_solution(curvature):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)).double()
    X, y = torch.randn(6, 3).double(), torch.randint(2, (6,))
    matrix = whole_hessian(model, mean_loss, X, y) if curvature == "hessian" else whole_ggn(model, mean_loss, X, y)
    dense, own, before = blocks(matrix, model), gradient(model, mean_loss, X, y), values(model)
    optimizer = hbp.optim.BlockNewton(model, None, lr=0.5, damping=0.5, curvature=curvature, progress=0.0,
                                      tolerance=1e-12)
    optimizer.step(X, y)
    for name, step in moved(model, before).items():
        damped = dense[name] + 0.5 * torch.eye(len(dense[name])).double()
        assert torch.linalg.eigvalsh(damped)[0] > 0
        close(step.flatten(), -0.5 * torch.linalg.solve(damped, own[name].flatten()), name)
        assert optimizer.solutions[name].converged
        assert not optimizer.solutions[name].negative


@pytest.mark.parametrize("curvature", ["pch_abs", "pch_clip"])
def test_block_newton_with_positive_curvature_is_the_dense_solution(curvature):
    """The first layer's blocks are the GGN's, and sum_n J^T diag(r) J / N for the activation's residuals
    r = tanh''(z) g, made positive; a bias meets 1."""
    model, X, y = chain()
    dense = blocks(whole_ggn(model, mean_loss, X, y), model)
    own, before = gradient(model, mean_loss, X, y), values(model)
    z = model[0](X).detach()
    gradients = (model(X).softmax(1).detach() - nn.functional.one_hot(y, 2)) @ model[2].weight.detach()
    residuals = -2 * torch.tanh(z) * (1 - torch.tanh(z) ** 2) * gradients
    assert (residuals > 0).any()
    assert (residuals < 0).any()
    positive = residuals.abs() if curvature == "pch_abs" else residuals.clamp(min=0)
    for name, inputs in (("0.weight", X), ("0.bias", torch.ones(6, 1).double())):
        more = torch.einsum("no,oj,ni,nk->oijk", positive, torch.eye(4).double(), inputs, inputs) / 6
        dense[name] = dense[name] + more.reshape(dense[name].shape)
    optimizer = hbp.optim.BlockNewton(model, None, lr=0.5, damping=0.1, curvature=curvature, progress=0.0,
                                      tolerance=1e-12)
    optimizer.step(X, y)
    for name, step in moved(model, before).items():
        damped = dense[name] + 0.1 * torch.eye(len(dense[name])).double()
        close(step.flatten(), -0.5 * torch.linalg.solve(damped, own[name].flatten()), name)


def test_block_newton_where_the_curvature_along_the_gradient_is_negative():
    """There it counts by its absolute value, so that a loss times c with a damping times c makes the same step."""
    for c in (1.0, 50.0):
        torch.manual_seed(0)
        model, (X, y) = nn.Linear(3, 2).double(), (torch.randn(6, 3).double(), torch.zeros(6).long())
        with torch.no_grad():
            model.weight.mul_(0.1)
            model.bias.fill_(0.1)

        def loss(output, target, c=c):
            return c * torch.cos(2 * output).sum(1).mean()

        H, own, before = blocks(whole_hessian(model, loss, X, y), model), gradient(model, loss, X, y), values(model)
        optimizer = hbp.optim.BlockNewton(model, loss, lr=0.5, damping=0.3 * c, curvature="hessian")
        optimizer.step(X, y)
        for name, step in moved(model, before).items():
            g = own[name].flatten()
            assert g @ H[name] @ g < -0.3 * c * g @ g
            assert optimizer.solutions[name].negative
            close(step.flatten(), -0.5 * g * (g @ g) / ((g @ H[name] @ g).abs() + 0.3 * c * g @ g), f"{c} {name}")


def test_block_newton_reaches_the_minimum():
    """A convex problem, block by block, down to 1e-10."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    X, y = torch.randn(20, 3).double(), torch.randint(2, (20,))
    optimizer = hbp.optim.BlockNewton(model, None, damping=1e-4, curvature="hessian", progress=0.0)
    norm = torch.tensor(1.0)
    for _ in range(200):
        if norm >= 1e-10:
            optimizer.step(X, y)
            norm = flat(gradient(model, mean_loss, X, y)).norm()
    assert norm < 1e-10


def test_newton_with_all_directions_is_the_damped_solution():
    model, X, y = tokens()
    G, own, before = whole_ggn(model, mean_loss, X, y), flat(gradient(model, mean_loss, X, y)), values(model)
    values_, vectors = torch.linalg.eigh(G)
    top = vectors[:, values_ > 1e-9 * values_[-1]]
    hbp.optim.Newton(model, None, lr=0.5, top=None, damping=0.1, columns="exact").step(X, y)
    expected = -0.5 * top @ ((top.T @ own) / (values_[values_ > 1e-9 * values_[-1]] + 0.1))
    close(flat(moved(model, before)), expected, "step", 1e-7)


def test_newton_takes_its_damping_from_the_noise_of_dense_slopes_and_curvatures():
    """Slopes g_n . e_k and curvatures e_k^T G_n e_k of each sample, along eigenvectors of the dense GGN."""
    model, X, _ = chain(samples=24)
    y = (X[:, 0] > X[:, 1]).long()
    values_, vectors = torch.linalg.eigh(whole_ggn(model, mean_loss, X, y))
    values_, vectors, before = values_[-4:], vectors[:, -4:], values(model)
    singles = [(X[n : n + 1], y[n : n + 1]) for n in range(24)]
    slopes = torch.stack([flat(gradient(model, mean_loss, *one)) for one in singles]) @ vectors
    curvatures = torch.stack([(vectors * (whole_ggn(model, mean_loss, *one) @ vectors)).sum(0) for one in singles])
    optimizer = hbp.optim.Newton(model, None, lr=0.5, top=4, damping="bootstrap", columns="exact", seed=3)
    chosen = hbp.bootstrap(generator=optimizer._draws("bootstrap"))(values_, slopes, curvatures)
    assert chosen.isfinite().any()
    optimizer.step(X, y)
    close(flat(moved(model, before)), -0.5 * vectors @ (slopes.mean(0) / (values_ + chosen)), "step", 1e-7)


def test_newton_of_groups_with_damping_from_noise():
    model, X, _ = chain(samples=32)
    y = (X[:, 0] > X[:, 1]).long()
    once, again = copy.deepcopy(model), copy.deepcopy(model)
    for each in (once, again):
        optimizer = hbp.optim.Newton(each, None, lr=1.0, top=4, damping="bootstrap", groups="layer", mc_samples=2,
                                     seed=3)
        losses = [float(optimizer.step(X, y)) for _ in range(4)]
    assert all(torch.equal(value, values(again)[name]) for name, value in values(once).items())
    assert losses[-1] < 0.9 * losses[0]


def test_newton_moves_the_chosen_parameters_alone():
    model, X, y = chain()
    before = values(model)
    hbp.optim.Newton(model, None, model[2].parameters(), damping=0.1).step(X, y)
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[2].weight, before["2.weight"])


def test_bad_input():
    model, X, y = chain()
    before = values(model)
    for made, words in ((lambda: hbp.optim.Diagonal(model, None, curvature="kfac"), "'kfac' is no diagonal"),
                        (lambda: hbp.optim.Diagonal(model, None, rule="adam"), "rule 'adam' is unknown"),
                        (lambda: hbp.optim.BlockNewton(model, None, curvature="kfac"), "curvature 'kfac' is unknown"),
                        (lambda: hbp.optim.BlockNewton(model, None, damping=-1), "damping must be a number, at least"),
                        (lambda: hbp.optim.Newton(model, None, top=0), "top must be a whole number"),
                        (lambda: hbp.optim.Newton(model, None, damping="noise"), "damping must be a number"),
                        (lambda: hbp.optim.Newton(model, None, groups="rows"), "groups 'rows' is unknown")):
        with pytest.raises(hbp.CompileError, match=words):
            made()

    def odd(output, target):
        return torch.sin(output).mean()

    for optimizer in (hbp.optim.Newton(model, odd), hbp.optim.KFLR(model, odd), hbp.optim.BlockNewton(model, odd),
                      hbp.optim.BlockNewton(model, odd, curvature="pch_abs")):
        with pytest.raises(hbp.UnsupportedOpError, match=r"convex|positive"):
            optimizer.step(X, y)
    assert all(torch.equal(value, before[name]) for name, value in values(model).items())


def test_block_newton_on_inputs_whose_mean_is_far_from_zero():
    """A weight and its bias are two blocks: what `lr` says of them."""
    for lr, falls in ((0.5, True), (1.0, False)):
        torch.manual_seed(0)
        X, y = torch.randn(200, 6).double() + 4, torch.randint(3, (200,))
        model = nn.Linear(6, 3).double()
        nn.init.zeros_(model.weight)
        optimizer = hbp.optim.BlockNewton(model, nn.CrossEntropyLoss(), lr=lr, curvature="hessian", damping=1e-6,
                                          progress=0.0)
        losses = [float(optimizer.step(X, y)) for _ in range(20)]
        assert all(later < earlier for earlier, later in pairwise(losses)) == falls, losses


def test_the_gradient_of_a_step_is_without_the_term_of_l2():
    torch.manual_seed(0)
    X, y = torch.randn(200, 6).double(), torch.randint(3, (200,))
    model = nn.Linear(6, 3).double()
    optimizer = hbp.optim.BlockNewton(model, nn.CrossEntropyLoss(), curvature="hessian", damping=1e-6, l2=1e-2,
                                      progress=0.0)
    for _ in range(80):
        optimizer.step(X, y)
    assert model.weight.norm() > 0.1
    torch.testing.assert_close(model.weight.grad, -1e-2 * model.weight.detach(), atol=1e-8, rtol=1e-6)
