"""Kronecker factors of one family's linear layers against autograd, and the average of what is drawn."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import hbpcompiler as hbp

from .check import TOLERANCE, call, compare
from .family import SAMPLES, Case

LAYERS = 3
"""How many layers' Kronecker factors are compared."""
VANISHING = 1e-6
"""Of the largest numbers of all layers: what is smaller in another one is taken for what rounding left of 0."""
DRAWS = 32
"""Calls over which the trace of a sampled factor is averaged."""
FAR = 6.0
"""Standard errors that an average may be off."""


def factors(case: Case) -> str:
    """A and B of some linear layers, by the Jacobian of the model's output in the layer's output; of kfac, whose B is
    drawn, A and the average of B's trace."""
    asked = untied(case.model)
    layers = {f"{path}.weight": module for path, module in case.model.named_modules()
              if type(module) is nn.Linear and f"{path}.weight" in asked}
    remark = ""
    try:
        result = _factors_of(case, asked)
    except hbp.CompileError as error:
        if "factors that are too large" not in str(error):
            raise
        remark = "of linear layers and convolutions alone: other parameters' factors would be too large"
        result = _factors_of(case, [name for name in asked if name in plain(case.model)])
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}

    def watch(name: str, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen[name].append((given[0], output))
        return output.clone()  # what follows may change it in place

    handles = [module.register_forward_hook(lambda _, given, output, name=name: watch(name, given, output))
               for name, module in layers.items()]
    output = call(case.model, case.inputs)
    for handle in handles:
        handle.remove()
    outputs = [item for item in pytree.tree_leaves(output) if isinstance(item, Tensor) and item.requires_grad]
    flat, hessian = _curvature(case, output, outputs)
    chosen: dict[str, Tensor] = {}
    once = [name for name, uses in seen.items() if len(uses) == 1 and uses[0][0].shape[0] == SAMPLES]
    for name in random.Random(0).sample(sorted(once), min(LAYERS, len(once))):
        ((given, made),) = seen[name]
        rows = [torch.autograd.grad(entry, made, retain_graph=True, allow_unused=True)[0] for entry in flat]
        jacobian = torch.stack([torch.zeros_like(made) if row is None else row for row in rows])
        jacobian = jacobian.reshape(len(rows), SAMPLES, -1, made.shape[-1])  # outputs, samples, positions, features
        expected = torch.einsum("anpi,ab,bnpj->ij", jacobian, hessian, jacobian) / jacobian.shape[2]
        inputs = given.detach().reshape(-1, given.shape[-1])
        compare("A", [(name, result.kflr[name].A, inputs.T @ (inputs / SAMPLES))])
        compare("A of kfac", [(name, result.kfac[name].A, result.kflr[name].A)])
        chosen[name] = expected
    if not chosen:
        return remark
    least = VANISHING * max(float(expected.abs().max()) for expected in chosen.values())
    for name, expected in chosen.items():
        compare("B", [(name, result.kflr[name].B, expected)], least)
    del result  # a factor of VGG's has five GB
    of_these = hbp.compile(case.model, case.loss, quantities={"kfac": list(chosen)})
    traces = {name: float(expected.trace()) for name, expected in chosen.items()}
    compare_drawn(lambda: of_these(case.inputs, case.target).kfac, traces, least)
    return remark


def _factors_of(case: Case, asked: list[str]) -> hbp.Result:
    return hbp.compile(case.model, case.loss, quantities={"kflr": asked, "kfac": asked})(case.inputs, case.target)


def plain(model: nn.Module) -> set[str]:
    """The parameters of linear layers and convolutions as torch has them: not of one that standardises its weight."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {f"{path}.{name}" for path, module in model.named_modules() if type(module) in kinds
            for name, _ in module.named_parameters(recurse=False)}


def untied(model: nn.Module) -> list[str]:
    """The parameters that have factors whatever they are: not those of several modules, as a vocabulary's."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(parameter, []).append(name)
    return [own[0] for own in names.values() if len(own) == 1]


def compare_drawn(draw: Callable[[], Any], traces: Mapping[str, float], least: float) -> None:
    """The average trace of B of kfac beside that of kflr, which is its expectation."""
    drawn: dict[str, list[float]] = {name: [] for name in traces}
    for _ in range(DRAWS):
        factors = draw()
        for name, found in drawn.items():
            found.append(float(factors[name].B.trace()))
    for name, expected in traces.items():
        found_traces = torch.tensor(drawn[name], dtype=torch.float64)
        error = float(found_traces.std()) / DRAWS**0.5
        gap = abs(float(found_traces.mean()) - expected)
        assert gap <= FAR * error + TOLERANCE * max(abs(expected), least), (
            f"the average trace of B of kfac of {name} is {gap:.1e} off, of {expected:.1e}; standard error {error:.1e}")


def _curvature(case: Case, output: Any, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The outputs side by side, and the loss's Hessian in them."""
    flat = torch.cat([item.flatten() for item in outputs])
    leaf = flat.detach().requires_grad_()
    parts = iter(leaf.split([item.numel() for item in outputs]))
    moved = pytree.tree_map(lambda item: next(parts).view(item.shape) if isinstance(item, Tensor)
                            and item.requires_grad else item, output)
    (slope,) = torch.autograd.grad(case.loss(moved, case.target), leaf, create_graph=True)
    rows = [torch.autograd.grad(entry, leaf, retain_graph=True)[0] for entry in slope]
    return flat, torch.stack(rows)
