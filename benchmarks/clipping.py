"""`python -m benchmarks.clipping`: clipped gradients, in multiples of the plain gradient, beside torch.func and Opacus.

Each row is a network and a batch size. All contestants run in turns (see `timing`), and before that must agree: ours
(the planner's own choice, and each way that there is), vmap(grad) with per-sample gradients clipped and summed, and
Opacus's ghost clipping, if it is installed (`pip install opacus`).
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hbpcompiler as hbp

from . import devices
from .networks import SEED, Problem, problem
from .peers import Run, gradient
from .timing import Measured, interleaved, prepare

MAX_NORM = 1.0
TOLERANCE = 1e-9
"""Relative difference, in float64 and on a few samples, of two contestants' results."""
FEW = 3
EPSILON = {"Opacus, ghost": 1e-5}
"""Those that add something to norms, 1e-6 here, differ by about as much."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


# -- networks --------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """ResNet's basic block with group norms."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(16, outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(16, outer)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inner != outer:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.GroupNorm(16, outer))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + (x if self.shortcut is None else self.shortcut(x)))


def resnet18() -> nn.Module:
    """He et al. 2015, for small images, with group norms in place of batch norms: 11 million parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.GroupNorm(16, 64), nn.ReLU()]
    inner = 64
    for outer, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(inner, outer, stride), Block(outer, outer, 1)]
        inner = outer
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class Layer(nn.Module):
    """A transformer's layer: norms first, four heads, GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (part(y).unflatten(-1, (4, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Four layers over the embeddings of 64 tokens, and a class for the sequence."""

    def __init__(self, width: int = 128, length: int = 64, words: int = 1000) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.register_buffer("positions", torch.randn(length, width) / 10)
        self.layers = nn.Sequential(*[Layer(width) for _ in range(4)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.words(tokens) + self.positions)).mean(1))


def given(name: str, size: int) -> Problem:
    """A network with seeded parameters and a batch."""
    if name not in ("resnet18", "transformer"):
        return problem(name, size)
    torch.manual_seed(SEED)
    model = resnet18() if name == "resnet18" else Transformer()
    inputs = torch.randn(size, 3, 32, 32) if name == "resnet18" else torch.randint(1000, (size, 64))
    return Problem(model, nn.CrossEntropyLoss(), inputs, torch.randint(10, (size,)))


CELLS = {"3c3d": 64, "resnet18": 16, "transformer": 16}
"""Network -> batch size."""


# -- contestants -----------------------------------------------------------------------------------------------------

WAYS: dict[str, hbp.Limits | None] = {
    "ours": None,
    "ours, kept": hbp.Limits(formed_time=0),
    "ours, again": hbp.Limits(formed_time=0, kept_bytes=0),
}


def ours(given: Problem, limits: hbp.Limits | None) -> Run:
    """The public call, its checks of the batch included."""
    compiled = hbp.compile(given.model, given.loss, ["clipped_grad"], limits=limits)
    return Run(lambda: compiled(given.inputs, given.target, max_norm=MAX_NORM), lambda result: result.clipped_grad)


def torch_func(given: Problem) -> Run:
    """All per-sample gradients at once, clipped and summed."""
    parameters = {name: parameter.detach() for name, parameter in given.model.named_parameters()}

    def sample_loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        output = torch.func.functional_call(given.model, parameters, (x.unsqueeze(0),))
        result: Tensor = given.loss(output, y.unsqueeze(0))
        return result

    each = torch.func.vmap(torch.func.grad(sample_loss), (None, 0, 0))

    def call() -> dict[str, Tensor]:
        found = each(parameters, given.inputs, given.target)
        squares = torch.stack([gradients.flatten(1).square().sum(1) for gradients in found.values()])
        weights = (MAX_NORM / squares.sum(0).sqrt()).clamp(max=1)
        return {name: torch.einsum("n,n...->...", weights, gradients) for name, gradients in found.items()}

    return Run(call, lambda result: result)


def opacus(given: Problem) -> Run | None:
    """Ghost clipping as Opacus has it: two backward passes, the second of the weighted loss without hooks."""
    try:
        from opacus.grad_sample import GradSampleModuleFastGradientClipping
    except ImportError:
        return None
    model: Any = GradSampleModuleFastGradientClipping(copy.deepcopy(given.model), loss_reduction="sum",
                                                      max_grad_norm=MAX_NORM, use_ghost_clipping=True)

    def call() -> None:
        model.zero_grad()
        losses = F.cross_entropy(model(given.inputs), given.target, reduction="none")
        losses.sum().backward(retain_graph=True)
        model.zero_grad()
        weights = model.get_clipping_coef()
        model.disable_hooks()
        (weights * losses).sum().backward()
        model.enable_hooks()

    return Run(call, lambda _: {name.removeprefix("_module."): parameter.grad
                                for name, parameter in model.named_parameters()})


def contestants(given: Problem, peers: bool) -> dict[str, Run]:
    """All that can run; the gradient is the first."""
    plain = gradient(given)
    assert plain is not None
    makers: dict[str, Callable[[], Run | None]] = {name: (lambda limits=limits: ours(given, limits))  # type: ignore[misc]  # its default is its argument
                                                   for name, limits in WAYS.items()}
    if peers:
        makers |= {"torch.func": lambda: torch_func(given), "Opacus, ghost": lambda: opacus(given)}
    found = {name: run for name, make in makers.items() if (run := make()) is not None}
    return {"gradient": plain, **found}


def difference(found: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest, over the largest number."""
    largest = max(float(value.abs().max()) for value in other.values())
    return max(float((found[name] - value).abs().max()) for name, value in other.items()) / largest


def disagreements(problem: Problem, peers: bool) -> list[str]:
    """Contestants whose clipped gradient is not the first one's: in float64, where rounding excuses nothing."""
    inputs = problem.inputs[:FEW]
    exact = Problem(copy.deepcopy(problem.model).double(), problem.loss,
                    inputs.double() if inputs.is_floating_point() else inputs, problem.target[:FEW])
    values = {name: run.read(run.call()) for name, run in contestants(exact, peers).items() if name != "gradient"}
    first, *others = values
    return [f"{name} differs from {first} by {gap:.1e}" for name in others
            if (gap := difference(values[name], values[first])) > EPSILON.get(name, TOLERANCE)]  # type: ignore[arg-type]  # dicts of tensors


def row(name: str, size: int, measured: Mapping[str, Measured]) -> str:
    """A line of the table: milliseconds of the gradient, then multiples of it."""
    base = measured["gradient"].median
    cells = [f"{other} {each.failure or f'{each.median / base:.2f}'}{'?' * (2 * each.disturbed > len(each.seconds))}"
             for other, each in measured.items() if other != "gradient"]
    return f"{name}:{size}, gradient {1000 * base:.1f} ms; in gradients: {', '.join(cells)}"


@click.command()
@click.option("--networks", default="", help=f"With commas; default: {', '.join(CELLS)}.")
@click.option("--batch", type=int, default=None, help="Batch size of all networks. Default: each its own.")
@click.option("--rounds", default=15, show_default=True, help="Measurements of each contestant, in turns.")
@click.option("--limit", default=60.0, show_default=True, help="Seconds that one call may take.")
@click.option("--patience", default=60.0, show_default=True, help="Seconds to wait for a quiet machine, for each row.")
@click.option("--peers/--no-peers", default=True, show_default=True)
@click.option("--threads", default=2, show_default=True)
@devices.DEVICE
@click.option("--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True,
              help="cpu: seconds of all threads, which a busy machine disturbs less.")
@click.option("--json", "file", default="", help="Where to write all measurements.")
def main(networks: str, batch: int | None, rounds: int, limit: float, patience: float, peers: bool, threads: int,
         device: str, clock: str, file: str) -> None:
    """Clipped gradients in multiples of the gradient's time."""
    prepare(threads, device)
    found = {}
    for name in networks.split(",") if networks else CELLS:
        size = batch or CELLS.get(name, 16)
        what = given(name, size)
        for wrong in disagreements(what, peers):
            raise click.ClickException(f"{name}: {wrong}")
        runs = contestants(what, peers)
        measured = interleaved(runs, rounds, limit, patience, clock=CLOCKS[clock], alternating=True)
        found[f"{name}:{size}"] = {other: each.seconds for other, each in measured.items()}
        print(row(name, size, measured), flush=True)
    if file:
        Path(file).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
