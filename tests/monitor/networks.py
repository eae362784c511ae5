"""Small networks, and their numbers by loops over samples."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 3


def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.again = nn.Conv2d(2, 2, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(x.reshape(-1, 1, 2, 2)))
        return self.head((x + F.silu(self.again(x))).flatten(1))


class Tied(nn.Module):
    """One matrix used three times, in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inner(x))
        x = torch.tanh(self.inner(x)) @ self.inner.weight
        return self.head(x)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 4)
        self.norm = nn.LayerNorm(4)
        self.qkv = nn.Linear(4, 12)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.reshape(-1, 2, 2))
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return self.head((x + F.scaled_dot_product_attention(q, k, v)).mean(1))


NETWORKS = {"chain": chain, "residual": Residual, "tied": Tied, "transformer": Transformer}


def batch(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 4, dtype=torch.float64, generator=generator)
    return x, torch.randint(CLASSES, (samples,), generator=generator)


def per_sample(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """l_n [N] and g_n [N, D], sample by sample."""
    losses, gradients = [], []
    for n in range(len(x)):
        loss = F.cross_entropy(model(x[n : n + 1]), y[n : n + 1])
        found = torch.autograd.grad(loss, list(model.parameters()))
        losses.append(loss.detach())
        gradients.append(torch.cat([part.flatten() for part in found]))
    return torch.stack(losses), torch.stack(gradients)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


STEP = 1e-5


def hessian(model: nn.Module, loss: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """[D, D] of L, by central differences of gradients: torch.func's own is wrong at a layer norm's weight."""
    parameters = list(model.parameters())
    start = flat(model)

    def gradient(vector: Tensor) -> Tensor:
        torch.nn.utils.vector_to_parameters(vector, parameters)
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss(model(x), y), parameters)])

    rows = [(gradient(start + STEP * unit) - gradient(start - STEP * unit)) / (2 * STEP)
            for unit in torch.eye(len(start), dtype=start.dtype)]
    torch.nn.utils.vector_to_parameters(start, parameters)
    matrix = torch.stack(rows)
    return (matrix + matrix.t()) / 2


def alpha_by_hand(losses: tuple[Tensor, Tensor], slopes: tuple[Tensor, Tensor], length: float) -> float:
    """Cockpit's own words: weighted normal equations, with the distance travelled as unit."""
    values = torch.stack([*(part.mean() for part in losses), *(part.mean() / length for part in slopes)])
    variances = torch.stack([*(part.var() for part in losses), *((part / length).var() for part in slopes)])
    phi = torch.tensor([[1, 0, 0], [1, length, length**2], [0, 1, 0], [0, 1, 2 * length]], dtype=torch.float64).t()
    weight = torch.diag(1 / variances)
    _, w1, w2 = torch.linalg.solve(phi @ weight @ phi.t(), phi @ weight @ values).tolist()
    return -1.0 if w2 < 0 else 2 * length / (-w1 / w2) - 1
