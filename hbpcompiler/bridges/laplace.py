"""laplace-torch with compiled programs: `Laplace(model, "classification", backend=HbpGGN)`, or `HbpEF`.

What each method returns is laplace-torch's own convention (its `CurvatureInterface`), written against version 0.3: sums
over the batch, times `factor`, which makes 1/2 |f - y|^2 of a squared error; parameters flattened in the model's order.
The approximations are those of Daxberger et al. 2021, Laplace Redux.

A program is made at the first batch and kept with the model, not with the backend (see `kept`): Laplace objects
come and go, and each makes a backend of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from glob import escape
from typing import Any

import torch
from torch import Tensor, nn

import hbpcompiler as hbp
from hbpcompiler.bridges.kept import kept
from hbpcompiler.bridges.laplace_factors import factors_of
from hbpcompiler.bridges.laplace_modules import LastLayer, Mapped, PerPosition, selected, total
from hbpcompiler.errors import InputTypeError
from hbpcompiler.wrappers import unwrapped

try:
    from laplace.curvature import CurvatureInterface, EFInterface, GGNInterface
    from laplace.utils import Kron
except ModuleNotFoundError as error:
    if not str(error.name).startswith("laplace"):
        raise
    raise ModuleNotFoundError("hbpcompiler.bridges.laplace needs laplace-torch, which is not installed: "
                              "pip install laplace-torch==0.3 (docs/laplace.md)", name="laplace") from error

Inputs = Tensor | MutableMapping[str, Any]
"""Of a batch: what the model takes as its one argument."""
LOSSES = {"regression": nn.MSELoss(reduction="sum"), "classification": nn.CrossEntropyLoss(reduction="sum")}
"""By likelihood. One object each, so that all backends of a model find the same programs."""
OPTIONS = {"N", "mc_samples", "kfac_approx"}
APPROXIMATIONS = {"expand": "", "reduce": "_reduce"}
ADVICE = ("This was asked for by a Laplace approximation. Where the model has to stay as it is: "
          "subset_of_weights=\"last_layer\" compiles nothing but the last layer, and laplace-torch's own backends, "
          "such as backend=laplace.curvature.CurvlinopsGGN, compile nothing")


@dataclass(frozen=True)
class Outcome:
    """What a program returned, with the values of the parameters that Laplace asks for, in its order."""

    parameters: list[nn.Parameter]
    values: list[Any]
    """None for a parameter that does not influence the output."""
    result: hbp.Result
    compiled: hbp.Compiled
    samples: int

    def flat(self, *leading: int) -> Tensor:
        """The values side by side, [*leading, P]."""
        rows = [parameter.new_zeros(*leading, parameter.numel()) if value is None else value.reshape(*leading, -1)
                for parameter, value in zip(self.parameters, self.values, strict=True)]
        return torch.cat(rows, dim=-1)


class HbpInterface(CurvatureInterface):
    """What both backends share: which module runs, on what, for which parameters."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.lossfunc = LOSSES["regression" if self.likelihood == "regression" else "classification"]

    def jacobians(self, x: Inputs, enable_backprop: bool = False) -> tuple[Tensor, Tensor]:
        """Derivatives of the outputs in the parameters, [N, C, P], and the outputs, [N, C].

        With `enable_backprop` they are laplace-torch's own, by torch.func: a program's results have no gradient.
        """
        if self.last_layer:
            return self.last_layer_jacobians(x, enable_backprop)
        if enable_backprop:
            return super().jacobians(x, enable_backprop)
        run = self._run("jacobian", x, self._no_target(x), total)
        return self._subnetwork(run.flat(*run.result.output.shape)), run.result.output

    def selected_output_jacobians(self, x: Inputs, outputs: Tensor,
                                  enable_backprop: bool = False) -> tuple[Tensor, Tensor]:
        """Derivatives of chosen outputs, `outputs` [N] or [N, S], of each sample: [N, S, P]; and the outputs, [N, C].

        One backward pass for each of the S, instead of one for each output.
        """
        chosen = (outputs if outputs.dim() > 1 else outputs[:, None]).long()
        if len(chosen) != self._samples(x):
            raise hbp.InputError(f"outputs must have a row for each of the {self._samples(x)} samples, not "
                                 f"{len(chosen)}")
        if enable_backprop or self.last_layer:
            rows, output = self.jacobians(x, enable_backprop)
            return rows.take_along_dim(chosen.to(rows.device)[..., None], dim=1), output
        runs = [self._run("batch_grad", x, column, selected) for column in chosen.unbind(1)]
        return self._subnetwork(torch.stack([run.flat(run.samples) for run in runs], dim=1)), runs[0].result.output

    def gradients(self, x: Inputs, y: Tensor) -> tuple[Tensor, Tensor]:
        """Each sample's gradient of `lossfunc`, [N, P], and the loss, both without `factor`."""
        run = self._run("batch_grad", x, y)
        return self._subnetwork(run.flat(run.samples)), run.result.loss

    def _kron(self, quantity: str, x: Inputs, y: Tensor, whole: int, options: Mapping[str, Any],
              samples: int = 1) -> tuple[Tensor, Kron]:
        """Factors of a batch out of `whole` samples, scaled so that they add up factor by factor."""
        approximation = options.get("kfac_approx", "expand")
        if approximation not in APPROXIMATIONS:
            raise hbp.InputError(f"kfac_approx must be one of {', '.join(APPROXIMATIONS)}, not {approximation!r}")
        if self.subnetwork_indices is not None:
            raise hbp.InputError("a subnetwork has no Kronecker factors: use hessian_structure=\"full\" or \"diag\"")
        quantity += APPROXIMATIONS[approximation]
        run = self._run(quantity, x, y, mc_samples=samples)
        names = self._names(run.compiled.model)
        factors = factors_of(run.result[quantity], run.compiled, dict(zip(names, self.params, strict=True)),
                             run.samples, whole)
        return self.factor * run.result.loss, Kron(factors) * self.factor

    # -- running -------------------------------------------------------------------------------------------------

    def _run(self, quantity: str, x: Inputs, y: Tensor, loss: Callable[..., Tensor] | None = None,
             mc_samples: int = 1) -> Outcome:
        """One quantity of this batch, from the program that the model has for it."""
        module, inputs = self._served(x)
        names = self._names(module)
        touched = self._touched()
        chosen = tuple(names[number] for number in touched)
        own = loss or self.lossfunc

        def make() -> hbp.Compiled:
            ended = own if loss is not None or self.likelihood == "regression" else PerPosition(own)
            return hbp.compile(module, ended, {quantity: [escape(name) for name in chosen]}, mc_samples=mc_samples)

        compiled = kept(self._model).get((quantity, module, chosen, own, mc_samples), make)
        try:
            result = compiled(*inputs, y)
        except hbp.CompileError as error:
            error.add_note(ADVICE)
            raise
        values = [result[quantity].get(name) for name in chosen]
        return Outcome([self.params[number] for number in touched], values, result, compiled, self._samples(x))

    def _served(self, x: Inputs) -> tuple[nn.Module, tuple[Any, ...]]:
        """The module to compile and its arguments for these inputs."""
        if self.last_layer:
            return self._features(x)
        model = unwrapped(self.model)
        if isinstance(x, Tensor):
            return model, (x,)
        if type(x) is not dict:
            model = kept(self._model).get((type(x), model), lambda: Mapped(model, type(x)))
        return model, ((dict(x),),)

    def _features(self, x: Inputs) -> tuple[nn.Module, tuple[Any, ...]]:
        """The last layer alone, and what it gets of these inputs."""
        with torch.no_grad():
            output, features = self.model.forward_with_features(x)
            if features.dim() == 1:  # feature_reduction has squeezed a batch of one
                features = features[None]
            again = nn.functional.linear(features, self._model.weight, self._model.bias)
        rounding = torch.finfo(output.dtype).eps ** 0.5 * output.abs().max()
        if again.shape != output.shape or (again - output).abs().max() > rounding:
            raise hbp.InputError(
                f"the model's output, {list(output.shape)}, is not what its last layer makes of its inputs, "
                f"{list(again.shape)}: the model goes on behind that layer. Where it picks or averages positions, "
                "say so by Laplace's feature_reduction (\"pick_first\", \"pick_last\" or \"average\")")
        if not _is_plain(self._model):
            return self._model, (features,)
        layer = kept(self._model).get(LastLayer, LastLayer)
        return layer.like(self._model), (features,)

    def _samples(self, x: Inputs) -> int:
        return len(x if isinstance(x, Tensor) else x[self.dict_key_x])

    def _no_target(self, x: Inputs) -> Tensor:
        """Stands where a batch has a target."""
        first = x if isinstance(x, Tensor) else x[self.dict_key_x]
        return torch.zeros(len(first), dtype=self.params[0].dtype, device=first.device)

    # -- parameters ----------------------------------------------------------------------------------------------

    def _names(self, module: nn.Module) -> list[str]:
        """Those that Laplace's parameters have in the module that is compiled."""
        own = {id(parameter): name for name, parameter in module.named_parameters()}
        named = [own.get(id(parameter)) for parameter in self.params]
        gone = sum(name is None or not parameter.requires_grad
                   for name, parameter in zip(named, self.params, strict=True))
        if gone:
            raise hbp.InputError(f"{gone} of the {len(named)} parameters that this Laplace approximation is of are no "
                                 "longer the model's, or are frozen now: make a new one, Laplace(model, ...)")
        return [name for name in named if name is not None]

    def _touched(self) -> list[int]:
        """The numbers of the parameters that a subnetwork has entries of; of all, without one."""
        if self.subnetwork_indices is None:
            return list(range(len(self.params)))
        ends = torch.tensor([parameter.numel() for parameter in self.params], device="cpu").cumsum(0)
        return sorted(set(torch.bucketize(self.subnetwork_indices.cpu(), ends, right=True).tolist()))

    def _subnetwork(self, rows: Tensor) -> Tensor:
        """Of rows of the touched parameters, [..., P], the subnetwork's entries."""
        indices = self.subnetwork_indices
        if indices is None:
            return rows
        sizes = [parameter.numel() for parameter in self.params]
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        there = torch.cat([torch.arange(starts[number], starts[number] + sizes[number], device="cpu")
                           for number in self._touched()])
        return rows[..., torch.searchsorted(there, indices.cpu()).to(rows.device)]


class HbpGGN(HbpInterface, GGNInterface):
    """The generalised Gauss-Newton matrix, exact; or sampled, with `stochastic=True`, from `num_samples` labels."""

    def full(self, x: Inputs, y: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The loss and the matrix, [P, P], of a batch."""
        quantity, samples = self._sampled("sqrt_ggn", "sqrt_ggn_mc", kwargs)
        run = self._run(quantity, x, y, mc_samples=samples)
        columns = next(value.shape[1] for value in run.values if value is not None)
        rows = self._subnetwork(run.flat(run.samples, columns)).flatten(0, 1)
        return self.factor * run.result.loss, self.factor * (rows.mT @ rows)

    def diag(self, x: Inputs, y: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The loss and the matrix's diagonal, [P], of a batch. Nothing of size N times P is made."""
        quantity, samples = self._sampled("diag_ggn", "diag_ggn_mc", kwargs)
        run = self._run(quantity, x, y, mc_samples=samples)
        return self.factor * run.result.loss, self.factor * self._subnetwork(run.flat())

    def kron(self, x: Inputs, y: Tensor, N: int, **kwargs: Any) -> tuple[Tensor, Kron]:
        """The loss and the Kronecker factors of a batch out of N samples.

        `kfac_approx`: "expand" or "reduce", for layers with shared positions; `mc_samples`: labels drawn per sample.
        Raises InputError for parameters whose block has no two factors.
        """
        quantity, samples = self._sampled("kflr", "kfac", kwargs)
        return self._kron(quantity, x, y, N, kwargs, samples)

    def _sampled(self, exact: str, sampled: str, options: Mapping[str, Any]) -> tuple[str, int]:
        """The quantity, and how many labels it draws."""
        _check(options)
        return (sampled, int(options.get("mc_samples", self.num_samples))) if self.stochastic else (exact, 1)


class HbpEF(HbpInterface, EFInterface):
    """The empirical Fisher: `factor` times the sum over samples of g g^T, g the gradient of `lossfunc`."""

    def full(self, x: Inputs, y: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The loss and the matrix, [P, P], of a batch."""
        _check(kwargs)
        rows, loss = self.gradients(x, y)
        return self.factor * loss, self.factor * (rows.mT @ rows)

    def diag(self, x: Inputs, y: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The loss and the matrix's diagonal, [P], of a batch. Nothing of size N times P is made."""
        _check(kwargs)
        run = self._run("second_moment", x, y)
        return self.factor * run.result.loss, self.factor * run.samples * self._subnetwork(run.flat())

    def kron(self, x: Inputs, y: Tensor, N: int, **kwargs: Any) -> tuple[Tensor, Kron]:
        """The loss and the Kronecker factors of a batch out of N samples; `kfac_approx` as for `HbpGGN`."""
        _check(kwargs)
        return self._kron("kfac_emp", x, y, N, kwargs)


def _is_plain(layer: nn.Module) -> bool:
    """Whether it is linear in parameters of its own: not parametrised, not with a forward of another class."""
    return type(layer).forward is nn.Linear.forward and {"weight", "bias"} == layer._parameters.keys()


def _check(options: Mapping[str, Any]) -> None:
    """What `full`, `diag` and `kron` take beside the batch: backends ignore what they do not know, silently."""
    unknown = sorted(options.keys() - OPTIONS)
    if unknown:
        raise InputTypeError(f"{', '.join(unknown)}: no such option; there are {', '.join(sorted(OPTIONS))}")
