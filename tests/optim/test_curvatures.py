"""Each curvature with each form of damping, against dense linear algebra; scales; what is refused."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.optim.kinds import KINDS
from tests.optim.models import chain, close, flat, gradient, mean_loss, values
from tests.optim.test_changes import moved
from tests.selection import few

DAMPINGS = {"*": 0.3, "0.*": 0.1}


def positions(seed=0):
    """Layers at several positions, where expand and reduce differ, and a mean over these."""
    class Net(nn.Sequential):
        def forward(self, x):
            return super().forward(x).mean(1)

    torch.manual_seed(seed)
    model = Net(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, torch.randn(6, 5, 3).double(), torch.randint(2, (6,))


def solved(H, own, split):
    """Each block with its damping, as a dense matrix."""
    found = {}
    for block in H.blocks:
        damping = DAMPINGS["0.*" if block.names[0].startswith("0") else "*"]
        joint = torch.cat([own[name].flatten(1) if own[name].dim() > 1 else own[name].unsqueeze(1)
                           for name in block.names], 1)
        if split == "pi" and hasattr(block, "outputs"):
            A, B = block.A.contiguous(), block.B.contiguous()
            pi = ((A.trace() / len(A)) / (B.trace() / len(B))).sqrt()
            dense = torch.kron(B + damping**0.5 / pi * torch.eye(len(B)).double(),
                               A + damping**0.5 * pi * torch.eye(len(A)).double())
        else:
            dense = dense_of(block)
            dense = dense + damping * torch.eye(len(dense)).double()
        step = torch.linalg.solve(dense, joint.flatten()).reshape(joint.shape)
        widths = [own[name].flatten(1).shape[1] if own[name].dim() > 1 else 1 for name in block.names]
        for name, part in zip(block.names, step.split(widths, 1), strict=True):
            found[name] = part.reshape(own[name].shape)
    return found


def dense_of(block):
    """Over [outputs, inputs with the bias last], where there are some."""
    if hasattr(block, "outputs"):
        return torch.kron(block.B.contiguous(), block.A.contiguous())
    if hasattr(block, "A"):
        vectors = torch.kron(block.B.contiguous(), block.A.contiguous())
        return vectors @ block.values.flatten().diag() @ vectors.T
    return block.to_dense()


@few(2, "further cases of one kind")
@pytest.mark.parametrize(("name", "split"), [
    ("kfac", "pi"), ("kfac_reduce", "exact"), ("kflr_reduce", "pi"), ("kfac_emp", "exact"),
    ("ekfac", "exact"), ("ekfac_emp", "exact"), ("diag_ggn_mc", "exact"), ("blocks", "exact"), ("blocks_mc", "pi")])
def test_each_curvature_is_divided_by_with_its_groups_damping(name, split):
    model, X, y = positions()
    pre = hbp.optim.Preconditioner(model, None, name, DAMPINGS, split=split, update_every=1, invert_every=1)
    pre.step(X, y)
    own = gradient(model, mean_loss, X, y)
    expected = solved(pre.curvature(), own, split)
    for parameter, found in model.named_parameters():
        close(found.grad, expected[parameter], f"{name} {parameter}", 1e-8)
    quantity = KINDS[name].quantity
    if not name.startswith("ekfac") and "mc" not in name and name not in ("kfac", "kfac_reduce", "blocks"):
        result = hbp.compile(model, mean_loss, [quantity], joint_bias=True)(X, y)
        close(pre.curvature()["0.weight"].B, result[quantity]["0.weight"].B, "what it is made of")


@pytest.mark.parametrize("split", ["exact", "pi"])
def test_kfra_against_the_recursion_by_averages(split):
    """Botev et al. 2017: from layer to layer the mean over samples of (W^T G W) * (d d^T); in the preconditioner, and
    as a step of the optimizer."""
    model, X, y = chain()
    own, p = gradient(model, mean_loss, X, y), model(X).softmax(1).detach()
    G_last = (torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)).mean(0)
    hidden = torch.tanh(model[0](X)).detach()
    slopes, W = 1 - hidden**2, model[2].weight.detach()
    G_first = (W.T @ G_last @ W) * (slopes.T @ slopes / len(X))
    expected = {}
    for layer, inputs, B in (("0", X, G_first), ("2", hidden, G_last)):
        joint = torch.cat([inputs, torch.ones(len(X), 1).double()], 1)
        A = joint.T @ joint / len(X)
        damping = DAMPINGS["0.*" if layer == "0" else "*"]
        identities = torch.eye(len(A)).double(), torch.eye(len(B)).double()
        if split == "pi":
            pi = ((A.trace() / len(A)) / (B.trace() / len(B))).sqrt()
            dense = torch.kron(B + damping**0.5 / pi * identities[1], A + damping**0.5 * pi * identities[0])
        else:
            dense = torch.kron(B, A) + damping * torch.eye(len(A) * len(B)).double()
        both = torch.cat([own[f"{layer}.weight"], own[f"{layer}.bias"].unsqueeze(1)], 1)
        solution = torch.linalg.solve(dense, both.flatten()).reshape(both.shape)
        expected |= {f"{layer}.weight": solution[:, :-1], f"{layer}.bias": solution[:, -1]}
    pre = hbp.optim.Preconditioner(model, None, "kfra", DAMPINGS, split=split)
    pre.step(X, y)
    for name, parameter in model.named_parameters():
        close(parameter.grad, expected[name], f"preconditioner, {name}", 1e-8)
    before = values(model)
    groups = [{"params": model[0].parameters(), "damping": 0.1}, {"params": model[2].parameters(), "damping": 0.3}]
    hbp.optim.KFRA(model, None, groups, lr=0.2, momentum=0.9, split=split).step(X, y)
    for name, value in values(model).items():
        close(value - before[name], -0.2 * expected[name], f"optimizer, {name}", 1e-7)


def test_expand_and_reduce_are_two_curvatures():
    model, X, y = positions()
    blocks = []
    for name in ("kfac_emp", "kfac_emp_reduce"):
        pre = hbp.optim.Preconditioner(model, None, name)
        pre.step(X, y)
        blocks.append(pre.curvature()["0.weight"].to_dense())
    assert (blocks[0] - blocks[1]).norm() > 0.01 * blocks[0].norm()


class Preconditioned(hbp.optim.Preconditioner):
    """With SGD, as an optimizer."""

    def step(self, *batch):
        found = super().step(*batch)
        torch.optim.SGD(self.model.parameters(), lr=0.1).step()
        return found


SCALED = [lambda model, loss, c: hbp.optim.EKFAC(model, loss, damping=0.3 * c, curvature="ekfac_exact"),
          lambda model, loss, c: hbp.optim.KFAC(model, loss, damping=0.3 * c, least_damping=1e-3 * c, adapt_every=1),
          lambda model, loss, c: hbp.optim.KFRA(model, loss, lr=0.2, damping=0.3 * c),
          lambda model, loss, c: Preconditioned(model, loss, "kflr", {"0.*": 0.3 * c, "2.*": c}, split="exact"),
          lambda model, loss, c: hbp.optim.Diagonal(model, loss, rule="sophia", curvature="diag_ggn", eps=1e-9 * c),
          lambda model, loss, c: hbp.optim.Diagonal(model, loss, damping=0.3 * c, curvature="diag_ggn"),
          lambda model, loss, c: hbp.optim.BlockNewton(model, loss, damping=0.3 * c),
          lambda model, loss, c: hbp.optim.Newton(model, loss, damping=0.3 * c),
          lambda model, loss, c: hbp.optim.Diagonal(model, loss, rule="adahessian", curvature="diag_ggn", eps=0.1 * c),
          lambda model, loss, c: hbp.optim.Newton(model, loss, columns="exact", damping=hbp.bootstrap(
              c * torch.logspace(-3, 2, 100))),
          lambda model, loss, c: Preconditioned(model, loss, "kflr", 0.3 * c, kl_clip=1e-3 * c),
          lambda model, loss, c: hbp.optim.KFLR(model, loss, lr=0.2, damping=0.3 * c, l2=0.1 * c,
                                                norm_constraint=1e-3 * c),
          lambda model, loss, c: hbp.optim.Diagonal(model, loss, damping=0.3 * c**2, lr=0.1 * c,
                                                    curvature="second_moment"),
          lambda model, loss, c: hbp.optim.KFAC(model, loss, damping=0.3 * c**2, lr=0.1 * c, momentum=0.9,
                                                curvature="kfac_emp")]
"""The last two grow with the square of the loss."""


@few(2, "the damping is one function")
@pytest.mark.parametrize("make", SCALED)
def test_a_loss_times_c_with_a_damping_times_c_makes_the_same_steps(make):
    steps = []
    for c in (1.0, 50.0):
        model, X, y = chain()

        def loss(output, target, c=c):
            return c * mean_loss(output, target)

        before = values(model)
        optimizer = make(model, loss, c)
        optimizer.step(X, y)
        optimizer.step(X, y)
        steps.append(flat({name: value - before[name] for name, value in values(model).items()}))
    close(steps[1], steps[0], "step", 1e-7)


def test_what_cannot_be_is_refused_and_nothing_is_touched():
    model, X, y = chain()
    before = values(model)
    twice = [{"params": [model[0].weight]}, {"params": [model[0].weight]}]
    for make in (hbp.optim.KFAC, hbp.optim.EKFAC, hbp.optim.Diagonal, hbp.optim.BlockNewton, hbp.optim.Newton):
        with pytest.raises(hbp.CompileError, match=r"0\.weight is in another group already"):
            make(model, None, twice)
    for make in (hbp.optim.KFAC, hbp.optim.EKFAC, hbp.optim.Diagonal, hbp.optim.BlockNewton, hbp.optim.Preconditioner):
        with pytest.raises(hbp.CompileError, match=r"curvature 'fisher' is unknown|'fisher' is no diagonal"):
            make(model, None, curvature="fisher")
    with pytest.raises(hbp.CompileError, match=r"l2 of 0\.weight and 0\.bias"):
        hbp.optim.KFAC(model, None, [{"params": [model[0].weight], "l2": 0.1},
                                     {"params": [model[0].bias, *model[2].parameters()]}]).step(X, y)

    def odd(output, target):
        return torch.sin(output).mean()

    for make in (hbp.optim.Preconditioner, hbp.optim.EKFAC, hbp.optim.Diagonal):
        optimizer = make(model, odd)
        with pytest.raises(hbp.UnsupportedOpError, match="kfac_emp"):
            optimizer.step(X, y)
    assert not moved(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())
