"""Small networks in float64 and their dense matrices, for all tests of training."""

import torch
import torch.nn.functional as F
from torch import nn


class Tokens(nn.Module):
    """An embedding, a norm, two layers: parameters with and without factors."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.first = nn.Linear(4, 5)
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(self.norm(self.embedding(x)).mean(1))))


def tokens(seed=0):
    torch.manual_seed(seed)
    return Tokens().double(), torch.randint(7, (6, 5)), torch.randint(3, (6,))


def chain(seed=0, samples=6):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, torch.randn(samples, 3).double(), torch.randint(2, (samples,))


def gradient(model, loss, X, y):
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss(model(X), y), list(named.values()))
    return dict(zip(named, found, strict=True))


def flat(parts):
    return torch.cat([part.detach().flatten() for part in parts.values()])


def values(model):
    """Copies of the parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def whole_ggn(model, loss, X, y):
    """[D, D], by the outputs' Jacobian."""
    named = dict(model.named_parameters())
    output = model(X)
    rows = [flat(dict(zip(named, torch.autograd.grad(entry, list(named.values()), retain_graph=True), strict=True)))
            for entry in output.flatten()]
    J = torch.stack(rows)
    H = torch.autograd.functional.hessian(lambda out: loss(out.reshape(output.shape), y), output.detach().flatten())
    return J.T @ H @ J


def whole_hessian(model, loss, X, y):
    """[D, D], by autograd."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    def of_flat(theta):
        parts = theta.split([shape.numel() for shape in shapes.values()])
        named = {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return loss(torch.func.functional_call(model, named, (X,)), y)

    return torch.autograd.functional.hessian(of_flat, flat(dict(model.named_parameters())))


def blocks(matrix, model):
    """A matrix's diagonal block of each parameter, by name."""
    found, start = {}, 0
    for name, parameter in model.named_parameters():
        end = start + parameter.numel()
        found[name] = matrix[start:end, start:end]
        start = end
    return found


mean_loss = F.cross_entropy


def close(found, expected, what, tolerance=1e-9):
    error = ((found - expected).abs().max() / (1e-12 + expected.abs().max())).item()
    assert error < tolerance, f"{what}: relative error {error:.1e}"
