"""Every quantity by brute force: slow autograd loops that follow the definitions, for the tests and the demo.

Nothing here is shared with the compiler. Whatever the loss divides by, sample n's share of L is l_n / N for a mean
loss and l_n for a summed one; the share's gradient is what flows back from sample n's slice of the output alone.
Memory and time grow with the square of the parameter count: small models in float64 only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from hbpcompiler.rules.shared.twice import right_second_derivatives

Loss = Callable[..., Tensor]
Inputs = Sequence[Tensor] | Mapping[str, Any]
"""forward's arguments, by position or by name."""
Seen = dict[str, tuple[nn.Module, Tensor, Tensor]]
"""By a layer's path: the layer, its input, its output."""


def reference(
    model: nn.Module, loss: Loss, inputs: Inputs, target: Any, quantity: str, *, seed: int = 0
) -> dict[str, Tensor]:
    """One quantity for every trainable parameter, by name: grad, batch_grad, batch_l2, batch_inner, second_moment,
    variance, diag_ggn, diag_h, trace_ggn or trace_h; ValueError for any other. `seed` fixes the random draws (dropout)
    of the one forward pass. A loss that is `Weighted` weighs the samples, here and below."""
    run = Forward(model, loss, inputs, target, seed)
    functions: dict[str, Callable[[str], Tensor]] = {
        "grad": run.grad,
        "batch_grad": run.batch_grad,
        "batch_l2": lambda name: run.batch_grad(name).reshape(run.batch, -1).square().sum(1),
        "batch_inner": lambda name: run.batch_grad(name).reshape(run.batch, -1) @ run.grad(name).flatten(),
        "second_moment": run.second_moment,
        "variance": run.variance,
        "diag_ggn": lambda name: run.ggn(name).diagonal().view_as(run.parameters[name]),
        "diag_h": run.diag_h,
        "trace_ggn": lambda name: run.ggn(name).trace(),
        "trace_h": lambda name: run.diag_h(name).sum(),
    }
    if quantity not in functions:
        raise ValueError(f"there is no reference for {quantity!r}; there is one for {', '.join(functions)}")
    return {name: functions[quantity](name) for name in run.parameters}


def clipped_grad(
    model: nn.Module, loss: Loss, inputs: Inputs, target: Any, max_norm: float | Mapping[str, float],
    style: str = "flat", *, parameters: Sequence[str] | None = None, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """sum_n C_n g_n and the norms |g_n|, [N], of these parameters (None: of all trainable ones), by their names.

    With style "per_parameter" each parameter is clipped by its own norm to its own max_norm; with "flat",
    "automatic" and "opacus" all have the same norms, those over all of `parameters`.
    """
    run = Forward(model, loss, inputs, target, seed)
    names = list(run.parameters) if parameters is None else parameters
    each = {name: run.sample_gradients(name) for name in names}
    squares = {name: gradients.reshape(run.batch, -1).square().sum(1) for name, gradients in each.items()}
    whole = torch.stack(list(squares.values())).sum(0)
    norms = {name: (squares[name] if style == "per_parameter" else whole).sqrt() for name in names}
    clipped = {}
    for name in names:
        bound = max_norm[name] if isinstance(max_norm, Mapping) else max_norm
        total = torch.zeros_like(run.parameters[name])
        for norm, gradient in zip(norms[name], each[name], strict=True):
            if style == "automatic":
                total += bound / (norm + 0.01) * gradient
            elif style == "opacus":
                total += min(1.0, bound / (norm + 1e-6)) * gradient
            else:
                total += gradient if norm <= bound else bound / norm * gradient
        clipped[name] = total.detach()
    return clipped, norms


def ggn_block(
    model: nn.Module, loss: Loss, inputs: Inputs, target: Any, name: str, *, seed: int = 0
) -> Tensor:
    """The GGN of L in one parameter, [P, P]."""
    return Forward(model, loss, inputs, target, seed).ggn(name)


def hessian_block(
    model: nn.Module, loss: Loss, inputs: Inputs, target: Any, name: str, *, seed: int = 0
) -> Tensor:
    """The Hessian of L in one parameter, [P, P]."""
    return Forward(model, loss, inputs, target, seed).hessian(name)


class Weighted:
    """Has the derivatives of sum_n w_n l_n (over N for a mean): each sample's own slice with all others held fast.

    Its value is another. The model returns one tensor.
    """

    def __init__(self, loss: Loss, weights: Tensor) -> None:
        self.loss, self.weights, self.reduction = loss, weights, getattr(loss, "reduction", "mean")

    def __call__(self, output: Tensor, target: Any) -> Tensor:
        total = torch.zeros((), dtype=output.dtype)
        for n, weight in enumerate(self.weights):
            kept = torch.zeros(len(output), *[1] * (output.dim() - 1), dtype=output.dtype)
            kept[n] = 1
            total = total + weight * self.loss(output * kept + output.detach() * (1 - kept), target)
        return total


class Forward:
    """One forward pass and its derivatives, a row at a time."""

    def __init__(self, model: nn.Module, loss: Loss, inputs: Inputs, target: Any, seed: int = 0) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.mean = getattr(loss, "reduction", "mean") == "mean"
        self.weights = loss.weights if isinstance(loss, Weighted) else None
        self._jacobians: dict[str, Tensor] = {}
        # The fused attention kernels have no second derivative, and a few others a wrong one.
        with torch.enable_grad(), torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH), \
                right_second_derivatives():
            torch.manual_seed(seed)
            returned = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
            self.loss = loss(returned, target)
        items, structure = pytree.tree_flatten(returned)
        first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs[0]
        self.batch = first.shape[0]
        # All that the model returns for a sample, side by side; the loss sees it put together again.
        kept = [i for i, item in enumerate(items) if isinstance(item, Tensor) and item.requires_grad]
        rows = [items[i].reshape(self.batch, -1) for i in kept]
        self.output = torch.cat(rows, 1)
        leaf = self.output.detach().requires_grad_()
        with torch.enable_grad():
            for i, part in zip(kept, leaf.split([row.shape[1] for row in rows], 1), strict=True):
                items[i] = part.reshape(items[i].shape)
            slope = derivative(loss(pytree.tree_unflatten(items, structure), target), leaf, keep=True)
        self.slope = slope.detach()
        # [outputs, outputs]: the Hessian of L in the model's output.
        self.curvature = jacobian(slope, leaf)

    def grad(self, name: str) -> Tensor:
        return derivative(self.loss, self.parameters[name])

    def batch_grad(self, name: str) -> Tensor:
        """[N, *theta]: what flows back from each sample's slice of the output."""
        shares = []
        for n in range(self.batch):
            only = torch.zeros_like(self.slope)
            only[n] = self.slope[n]
            shares.append(derivative((self.output * only).sum(), self.parameters[name]))
        return torch.stack(shares)

    def sample_gradients(self, name: str) -> Tensor:
        """[N, *theta]: grad l_n."""
        return self.batch_grad(name) * (self.batch if self.mean else 1)

    def second_moment(self, name: str) -> Tensor:
        return self.sample_gradients(name).square().mean(0)

    def variance(self, name: str) -> Tensor:
        return self.second_moment(name) - self.sample_gradients(name).mean(0).square()

    def ggn(self, name: str) -> Tensor:
        if name not in self._jacobians:
            self._jacobians[name] = jacobian(self.output, self.parameters[name])
        rows = self._jacobians[name]
        return rows.T @ self.curvature @ rows

    def hessian(self, name: str) -> Tensor:
        parameter = self.parameters[name]
        return jacobian(derivative(self.loss, parameter, keep=True), parameter)

    def diag_h(self, name: str) -> Tensor:
        """The same a row at a time, without the [P, P] matrix."""
        parameter = self.parameters[name]
        slope = derivative(self.loss, parameter, keep=True).flatten()
        entries = [derivative(slope[i], parameter).flatten()[i] for i in range(slope.numel())]
        return torch.stack(entries).view_as(parameter)


def derivative(value: Tensor, at: Tensor, *, keep: bool = False) -> Tensor:
    """The gradient of a number; zero where it does not depend on `at`. keep: to be differentiated again."""
    if not value.requires_grad:
        return torch.zeros_like(at)
    (found,) = torch.autograd.grad(value, at, retain_graph=True, create_graph=keep, allow_unused=True)
    return torch.zeros_like(at) if found is None else found


def jacobian(value: Tensor, at: Tensor) -> Tensor:
    """[numbers in value, numbers in at], a row at a time."""
    return torch.stack([derivative(entry, at).flatten() for entry in value.flatten()])


# -- Kronecker factors -----------------------------------------------------------------------------------------------


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
        return (len(share) if run.mean else 1) * share[:, :, None] * share[:, None, :]

    return _factors(run, seen, squared, reduce, joint)


def _layers(model: nn.Module, loss: Loss, inputs: Inputs, target: Any, seed: int) -> tuple[Forward, Seen]:
    """A forward pass, and what layers with weights met in it."""
    seen, handles = {}, []
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            def hook(module: nn.Module, given: tuple[Tensor], output: Tensor, path: str = path) -> Tensor:
                seen[path] = (module, given[0].detach().clone(), output)
                return output.clone()  # in-place operations that follow leave `output` alone

            handles.append(module.register_forward_hook(hook))
    try:
        return Forward(model, loss, inputs, target, seed), seen
    finally:
        for handle in handles:
            handle.remove()


def _pulled(run: Forward, output: Tensor) -> Tensor:
    """[N, c, c]: J^T H J in a layer's output, sample by sample."""
    rows = jacobian(run.output, output)
    whole = (rows.T @ run.curvature @ rows).view(run.batch, output[0].numel(), run.batch, output[0].numel())
    return torch.stack([whole[n, :, n, :] for n in range(run.batch)])


def kfra(
    model: nn.Sequential, loss: Loss, inputs: Sequence[Tensor], target: Any, *, seed: int = 0
) -> dict[str, tuple[Tensor | None, Tensor]]:
    """As `kflr`, but the curvature is averaged over the batch at every module of a (nested) nn.Sequential: with M the
    average at a module's output, the average at its input is mean_n J_n^T M J_n."""
    leaves = [(path, module) for path, module in model.named_modules() if not isinstance(module, nn.Sequential)]
    run = Forward(model, loss, inputs, target, seed)
    seen, values = {}, [inputs[0]]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        for path, module in leaves:
            given = values[-1].detach().requires_grad_()
            output = module(given.clone())
            values[-1:] = [given, output]
            seen[path] = (module, given.detach(), output)
    size = run.output[0].numel()
    blocks = run.curvature.view(run.batch, size, run.batch, size)
    average = torch.stack([blocks[n, :, n, :] for n in range(run.batch)]).sum(0)
    averages: dict[int, Tensor] = {}
    for (path, _), given in zip(reversed(leaves), reversed(values[:-1]), strict=True):
        output = seen[path][2]
        averages[id(output)] = average
        rows = jacobian(output, given).view(run.batch, output[0].numel(), run.batch, given[0].numel())
        each = [rows[n, :, n, :] for n in range(run.batch)]
        times = torch.ones(run.batch) if run.weights is None else run.weights / run.weights.mean()
        average = torch.stack([w * row.T @ average @ row for w, row in zip(times.type_as(average), each, strict=True)]
                              ).mean(0)
    layers = {path: item for path, item in seen.items() if isinstance(item[0], nn.Linear | nn.modules.conv._ConvNd)}
    # One entry that stands for the sum over samples: the average is the same for all of them.
    return _factors(run, layers, lambda output: averages[id(output)].unsqueeze(0))


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
            pairs = [_pair(module, given, output, curvature, g, groups, transposed, reduce, ones, run.weights)
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
          transposed: bool, reduce: bool, ones: bool, weights: Tensor | None) -> tuple[Tensor, Tensor]:
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
        own = torch.arange(output[0].numel()).view(output.shape[1:])
        own = own.flatten(1) if channels_first else own.reshape(-1, own.shape[-1]).T
        own = own[first : first + per_group]  # [o, P]: where each position's features lie in the flat output
        total = curvature.sum(0)
        blocks = total[own.T[:, None, :, None], own.T[None, :, None, :]]  # [P, P, o, o]
        return _closed(inputs, blocks, reduce, weights)
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
    return _closed(inputs, blocks, reduce, weights)


def _of_single_pixels(module: nn.Module) -> bool:
    """Whether a transposed convolution's positions of the input are those of the output."""
    assert isinstance(module, nn.modules.conv._ConvNd)
    return {*module.kernel_size, *module.stride} == {1} and set(module.padding) == {0}


def _closed(inputs: Tensor, blocks: Tensor, reduce: bool, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """(A, B) of inputs [N, P, i] and of the curvature between all pairs of positions, [P, P, o, o].

    With weights of samples A is the weighted average.
    """
    if weights is not None:
        inputs = inputs * (weights / weights.mean()).sqrt().type_as(inputs)[:, None, None]
    if reduce:
        means = inputs.mean(1)
        return means.T @ means / len(means), blocks.sum((0, 1))
    return torch.einsum("npi,npj->ij", inputs, inputs) / len(inputs), blocks.diagonal().sum(-1) / len(blocks)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected number."""
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    return float((found - expected).abs().max()) / largest if largest else float(found.abs().max())
