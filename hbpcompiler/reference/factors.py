"""Kronecker factors, the inputs and the patches read off the layers' own derivatives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.system.seeded import seed_global

from .forward import Forward, Inputs, Loss, derivative, jacobian

Seen = dict[str, tuple[nn.Module, Tensor, Tensor]]
"""By a layer's path: the layer, its input, its output."""


def kflr(model: nn.Module, loss: Loss, inputs: Inputs, target: Any, *, seed: int = 0, reduce: bool = False,
         joint: bool = False) -> dict[str, tuple[Tensor | None, Tensor]]:
    """(A, B) of every Linear, Conv and ConvTranspose that is used once; a bias has (None, its full GGN block).

    With u the input that the weight meets at position p of P, and J the Jacobian of the model's output in the layer's
    output there: A = mean_n sum_p u u^T and B = (1/P) sum_{n,p} J^T H J, H the Hessian of L; with `reduce` A is that of
    the mean of u over p, B that of the sum of J. With `joint` u has a one behind its features, where the weight's
    layer has a trainable bias that is added as it is, and the bias has no entry. Convolutions of several groups have a
    leading axis of groups.
    """
    run, seen = _layers(model, loss, inputs, target, seed)
    return _factors(run, seen, lambda output: _pulled(run, output), reduce, joint)


def kfac_emp(model: nn.Module, loss: Loss, inputs: Inputs, target: Any, *, seed: int = 0, reduce: bool = False,
             joint: bool = False) -> dict[str, tuple[Tensor | None, Tensor]]:
    """As `kflr`, with c g_n g_n^T for a sample's J^T H J, g_n the gradient of l_n in the layer's output and c = 1/N for
    a mean loss, 1 for a summed one."""
    run, seen = _layers(model, loss, inputs, target, seed)

    def squared(output: Tensor) -> Tensor:
        share = derivative(run.loss, output).flatten(1)  # c g_n
        return (run.batch if run.mean else 1) * share[:, :, None] * share[:, None, :]

    return _factors(run, seen, squared, reduce, joint)


def _layers(model: nn.Module, loss: Loss, inputs: Inputs, target: Any, seed: int) -> tuple[Forward, Seen]:
    """A forward pass, and what layers with weights met in it: of those whose weight was met once."""
    seen, handles = {}, []
    uses = Counter[int]()
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            def hook(module: nn.Module, given: tuple[Tensor], output: Tensor, path: str = path) -> Tensor:
                uses[_weight(module)] += 1
                seen[path] = (module, given[0].detach().clone(), output)
                return output.clone()  # in-place operations that follow leave `output` alone

            handles.append(module.register_forward_hook(hook))
    try:
        run = Forward(model, loss, inputs, target, seed)
        return run, {path: item for path, item in seen.items() if uses[_weight(item[0])] == 1}
    finally:
        for handle in handles:
            handle.remove()


def _weight(module: nn.Module) -> int:
    """A number for its weight; where other parameters make that, for itself."""
    return id(module._parameters.get("weight", module))


def _pulled(run: Forward, output: Tensor) -> Tensor:
    """[N, c, c]: J^T H J in a layer's output, sample by sample; of the rows that a mask picks row by row."""
    rows, size = jacobian(run.output, output), output.shape[1:].numel()
    each = rows.view(len(rows), len(output), size).transpose(0, 1)
    return each.mT @ (run.curvature @ each)


def kfra(
    model: nn.Sequential, loss: Loss, inputs: Sequence[Tensor], target: Any, *, seed: int = 0
) -> dict[str, tuple[Tensor | None, Tensor]]:
    """As `kflr`, but the curvature is averaged over the batch at every module of a (nested) nn.Sequential: with M the
    average at a module's output, the average at its input is mean_n J_n^T M J_n.

    Raises ValueError if the model's output is not that of its modules in a row.
    """
    leaves = list(_in_a_row(model))
    run = Forward(model, loss, inputs, target, seed)
    steps, value = [], inputs[0]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        seed_global(seed, inputs[0].device)
        for path, module in leaves:
            given = value.detach().requires_grad_()
            value = module(given.clone())
            steps.append((path, module, given, value))
    if value.shape != run.output.shape or not torch.allclose(value, run.output, equal_nan=True):
        raise ValueError("kfra is defined for modules in a row, an nn.Sequential without a forward of its own and "
                         "without hooks: this model's output is another one than its modules' in a row.")
    size = run.output[0].numel()
    blocks = run.curvature.view(run.batch, size, run.batch, size)
    average = torch.stack([blocks[n, :, n, :] for n in range(run.batch)]).sum(0)
    averages: dict[int, Tensor] = {}
    for _, _, given, output in reversed(steps):
        averages[id(output)] = average
        rows = jacobian(output, given).view(run.batch, output[0].numel(), run.batch, given[0].numel())
        each = [rows[n, :, n, :] for n in range(run.batch)]
        times = average.new_ones(run.batch) if run.weights is None else run.weights / run.weights.mean()
        average = torch.stack([w * row.T @ average @ row for w, row in zip(times.type_as(average), each, strict=True)]
                              ).mean(0)
    layers = [step for step in steps if isinstance(step[1], nn.Linear | nn.modules.conv._ConvNd)]
    uses = Counter(_weight(module) for _, module, _, _ in layers)
    seen = {path: (module, given.detach(), output)
            for path, module, given, output in layers if uses[_weight(module)] == 1}
    # One entry that stands for the sum over samples: the average is the same for all of them.
    return _factors(run, seen, lambda output: averages[id(output)].unsqueeze(0))


def _in_a_row(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules that an nn.Sequential calls one after another, those of nested ones in their place."""
    if type(module).forward is not nn.Sequential.forward:
        yield path, module
        return
    for name, child in module._modules.items():
        if child is not None:
            yield from _in_a_row(child, f"{path}.{name}" if path else name)


def _factors(run: Forward, seen: Seen, pulled: Callable[[Tensor], Tensor], reduce: bool = False, joint: bool = False,
             ) -> dict[str, tuple[Tensor | None, Tensor]]:
    found: dict[str, tuple[Tensor | None, Tensor]] = {}
    for path, (module, given, output) in seen.items():
        weight, bias = (f"{path}.{kind}" if path else kind for kind in ("weight", "bias"))
        if weight not in run.parameters and bias not in run.parameters:
            continue
        curvature = pulled(output)
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        channels_first = isinstance(module, nn.modules.conv._ConvNd)
        ones = joint and {weight, bias} <= run.parameters.keys() and (not transposed or _of_single_pixels(module))
        if weight in run.parameters:
            groups = int(getattr(module, "groups", 1))
            pairs = [_pair(module, given, output, curvature, g, groups, transposed, reduce, ones, run)
                     for g in range(groups)]
            a, b = (torch.stack(part) if groups > 1 else part[0] for part in zip(*pairs, strict=True))
            found[weight] = (a, b)
        if bias in run.parameters and not ones:
            axes = tuple(output.shape[1:])
            full = curvature.sum(0).view(*axes, *axes)
            kept, count = (0, len(axes)) if channels_first else (len(axes) - 1, len(axes))
            summed = [axis for axis in range(2 * count) if axis not in (kept, kept + count)]
            found[bias] = (None, full.sum(summed) if summed else full)
    return found


def _pair(module: nn.Module, given: Tensor, output: Tensor, curvature: Tensor, group: int, groups: int,
          transposed: bool, reduce: bool, ones: bool, run: Forward) -> tuple[Tensor, Tensor]:
    """(A, B) of one group of a layer, the inputs and the patches read off the layer's own derivatives."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    layer = module.forward
    per_group = weight.shape[0] // groups
    first = group * per_group
    channels_first = isinstance(module, nn.modules.conv._ConvNd)
    if not transposed:
        # d output[n, o, p] / d weight[o] is the input that position p sees.
        with torch.enable_grad():
            again = layer(given)
        flat = again.flatten(2) if channels_first else again.reshape(again.shape[0], -1, again.shape[-1]).mT
        inputs = torch.stack([torch.stack([derivative(entry, weight)[first].flatten() for entry in sample[first]])
                              for sample in flat])  # [N, P, i]
        inputs = torch.cat([inputs, torch.ones_like(inputs[:, :, :1])], 2) if ones else inputs
        own = torch.arange(output.shape[1:].numel(), device=output.device).view(output.shape[1:])
        own = own.flatten(1) if channels_first else own.reshape(-1, own.shape[-1]).T
        own = own[first : first + per_group]  # [o, P]: where each position's features lie in the flat output
        total = curvature.sum(0)
        blocks = total[own.T[:, None, :, None], own.T[None, :, None, :]]  # [P, P, o, o]
        return _closed(inputs, blocks, reduce, run)
    # A transposed convolution's positions are those of its input: a one there reaches a patch of the output.
    flat = given.flatten(2)[:, first : first + per_group]
    reached = []
    for p in range(flat.shape[2]):
        one = torch.zeros_like(given[:1])
        one.view(given.shape[1], -1)[first, p] = 1
        with torch.enable_grad():
            spread = layer(one).flatten()
        reached.append(torch.stack([derivative(entry, weight)[first].flatten() for entry in spread]))  # [c, o * kernel]
    patches, inputs = torch.stack(reached), flat.mT
    inputs = torch.cat([inputs, torch.ones_like(inputs[:, :, :1])], 2) if ones else inputs
    blocks = torch.einsum("pco,cd,qdz->pqoz", patches, curvature.sum(0), patches)
    return _closed(inputs, blocks, reduce, run)


def _of_single_pixels(module: nn.Module) -> bool:
    """Whether a transposed convolution's positions of the input are those of the output."""
    assert isinstance(module, nn.modules.conv._ConvNd)
    return {*module.kernel_size, *module.stride} == {1} and set(module.padding) == {0}


def _closed(inputs: Tensor, blocks: Tensor, reduce: bool, run: Forward) -> tuple[Tensor, Tensor]:
    """(A, B) of inputs [N, P, i] and of the curvature between all pairs of positions, [P, P, o, o].

    With weights of samples A is the weighted average. A layer that meets the samples that a mask picks has fewer rows:
    A is over N nevertheless, as B is.
    """
    if (weights := run.weights) is not None:
        inputs = inputs * (weights / weights.mean()).sqrt().type_as(inputs)[:, None, None]
    if reduce:
        means = inputs.mean(1)
        return means.T @ means / run.batch, blocks.sum((0, 1))
    return torch.einsum("npi,npj->ij", inputs, inputs) / run.batch, blocks.diagonal().sum(-1) / len(blocks)
