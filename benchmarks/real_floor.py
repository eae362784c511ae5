"""The arithmetic floor of a cell: matrix products alone, at the gradient's rate.

Of a layer with N samples, P positions, I inputs and O outputs, f = N P I O multiply-adds are its forward pass, what
goes back through it, and the summed gradient of its weight, each. So a gradient is 3 f, and

    batch_l2      forward, back, and per sample the product (f), or inner products between positions (N P^2 (I + O))
    variance      forward, back, per-sample products; their sum is the gradient
    diag_ggn_mc   the same for one sampled column
    kfac          forward, back, and half of N P I^2 and of N P O^2, for both factors are symmetric; A once for layers
                  that read the same input
    several       the forward pass and each column's way back once

Elementwise operations, attention's own products and memory are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .networks import Problem
from .real_peers import layers


@dataclass(frozen=True)
class Layer:
    """One use of a weight."""

    samples: int
    positions: int
    inputs: int
    outputs: int
    groups: int
    read: int
    """Which tensor it reads."""
    weight: Any

    @property
    def forward(self) -> int:
        return self.samples * self.positions * self.inputs * self.outputs


def met(problem: Problem) -> list[Layer]:
    """All linear layers and convolutions, as the batch goes through them."""
    found: list[Layer] = []
    alive: list[Any] = []
    """What layers read, so that no two of them are at one address."""

    def hook(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        samples, groups = len(problem.inputs), getattr(module, "groups", 1)
        channels = 1 if isinstance(module, nn.modules.conv._ConvNd) else -1
        outputs = output.shape[channels]
        alive.append(inputs[0])
        positions = max(1, output.numel() // outputs // samples)
        found.append(Layer(samples, positions, module.weight.numel() // outputs, outputs, groups,
                           inputs[0].data_ptr(), module.weight))

    handles = [module.register_forward_hook(hook) for module in problem.model.modules()
               if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or type(module).__name__ == "Conv1D"]
    with torch.no_grad():
        problem.model(problem.inputs)
    for handle in handles:
        handle.remove()
    return found


def floor(problem: Problem, quantities: str) -> float:
    """In multiples of the gradient's products."""
    own, asked = met(problem), quantities.split("+")
    factored = {id(weight) for _, weight in layers(problem)}
    forward = sum(layer.forward for layer in own)
    products = forward
    for stream in {_stream(name) for name in asked}:
        products += forward  # its way back
        kinds = {name for name in asked if _stream(name) == stream}
        if kinds & {"variance", "diag_ggn_mc", "grad"}:
            products += forward
        elif "batch_l2" in kinds:
            products += sum(min(layer.forward, layer.samples * layer.positions**2 * (layer.inputs + layer.outputs))
                            for layer in own)
        if "kfac" in kinds:
            products += _factors([layer for layer in own if id(layer.weight) in factored])
    return products / (3 * forward)


def _stream(name: str) -> str:
    return "sampled" if name in ("diag_ggn_mc", "kfac") else "gradient"


def _factors(own: list[Layer]) -> int:
    reads = {(layer.read, layer.inputs, layer.positions): layer.samples * layer.positions * layer.inputs**2 // 2
             for layer in own}
    return sum(reads.values()) + sum(layer.samples * layer.positions * layer.outputs**2 // 2 for layer in own)
