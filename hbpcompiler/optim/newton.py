"""Newton's method in the top eigenspace of the GGN (ViViT: Dangel, Tatzel & Hennig 2022, section 4.3)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiled import compile as compile_model
from hbpcompiler.errors import HbpError
from hbpcompiler.optim.base import CurvatureOptimizer
from hbpcompiler.optim.programs import Gradient
from hbpcompiler.optim.settings import Checked, options_of_compile
from hbpcompiler.optim.together import all_finite
from hbpcompiler.spectra import CompiledSpectrum, Spectrum, bootstrap, spectrum
from hbpcompiler.system.threads import trainable_of


class Newton(CurvatureOptimizer):
    """theta <- theta - lr sum_k (grad L . e_k) / (lambda_k + delta_k) e_k over the batch's top eigenvectors e_k.

    Args:
        model: as for `KFAC`.
        loss: as there.
        params: as there.
        lr: of the step. Directions of one batch are noisy, and 1 suits the whole data set alone.
        top: so many directions of each group of parameters, or as many as there are; None: all.
        damping: "bootstrap": each direction's is chosen from the noise of slopes and curvatures of the samples, and one
            in which no step is sure to gain is left out; what `hbp.bootstrap(...)` returned; a positive number; or a
            function of (eigenvalues, slopes, curvatures), as for `Spectrum.newton_step`.
        groups: of parameters whose matrices are decomposed: "all", "layer", "parameter", or lists of names.
        columns: "sampled", or "exact": as many for each sample as the model has outputs.
        mc_samples: so many a sample.
        seed: of all draws, as for `KFAC`.
        group: as there, but that each rank gets the whole batch, whose spectrum is no sum over samples: ranks gain no
            time.
        options: of `hbp.spectrum`.
    """

    numbers: Mapping[str, dict[str, Any]] = {"lr": {}}

    def __init__(self, model: Any, loss: Callable[..., Tensor] | None = None, params: Any = None, *, lr: float = 0.3,
                 top: int | None = None, damping: Any = 1.0, groups: Any = "all", columns: str = "sampled",
                 mc_samples: int = 1, seed: int = 0, group: Any = None, **options: Any) -> None:
        checked = Checked("this optimizer")
        if top is not None:
            checked.whole("top", top)
        if not callable(damping) and damping != "bootstrap":
            checked.number("damping", damping, above=True)
        checked.whole("seed", seed, least=0)
        checked.done()
        super().__init__(model, loss, params, {"lr": lr}, group)
        self.top, self.seed, self.damping = top, seed, damping
        self._groups_given = groups
        self._options = {"columns": columns, "mc_samples": mc_samples, **options_of_compile(options)}
        self._compiled: dict[frozenset[str], CompiledSpectrum] = {}
        self._spectrum: Spectrum | None = None
        self._program()

    def _program(self) -> CompiledSpectrum:
        """For the parameters that are chosen and trainable now."""
        chosen = frozenset(self._chosen())
        if chosen not in self._compiled:
            trainable = {*trainable_of(self.model)}
            some = chosen != trainable and isinstance(self._groups_given, str) and self._groups_given == "all"
            groups = {"all": sorted(chosen)} if some else self._groups_given
            self._compiled[chosen] = spectrum(self.model, self.loss, groups, **self._options)
        return self._compiled[chosen]

    def _gradient(self, batch: tuple[Any, ...]) -> tuple[Tensor, Gradient | None]:
        whole = self._together.whole(batch)
        try:
            found = self._program()(*whole, generator=self._draws("columns"))
        except (HbpError, RuntimeError):  # of eigenvalues, or targets, of what is not finite
            first = compile_model(self.model, self.loss, ["grad"], verify=False)(
                *whole, generator=self._draws("columns"))  # only whether it is finite is asked
            if all_finite([first.loss, *first.grad.values()]):
                raise
            return first.loss, None
        gradient = dict(found.grad)
        if not all_finite([found.loss, *gradient.values()]):
            return found.loss, None
        self._spectrum = found
        return found.loss, gradient

    def _move(self, batch: tuple[Any, ...], loss: Tensor, gradient: Gradient) -> None:
        found, self._spectrum = self._spectrum, None
        assert found is not None
        damping = bootstrap(generator=self._draws("bootstrap")) if self.damping == "bootstrap" else self.damping
        step = found.newton_step(damping=damping, top=self._tops(found))
        groups, parameters = self._groups(), self._chosen()
        for name, part in _by_parameter(step).items():
            if name in parameters:
                parameters[name].add_(part, alpha=groups[name]["lr"])

    def _tops(self, found: Spectrum) -> Any:
        """Not more than there are."""
        if self.top is None:
            return None
        values = found.eigenvalues
        if isinstance(values, Tensor):
            return min(self.top, len(values))
        return {group: min(self.top, len(own)) for group, own in values.items()}

    def _draws(self, what: str) -> torch.Generator:
        seed = random.Random(f"{self.seed}, {what}, step {self.steps}").getrandbits(62)
        return torch.Generator().manual_seed(seed)


def _by_parameter(step: Mapping[str, Any]) -> dict[str, Tensor]:
    """Of several groups' steps, {group: {name: tensor}}, or of one's."""
    found: dict[str, Tensor] = {}
    for name, part in step.items():
        found |= {name: part} if isinstance(part, Tensor) else part
    return found
