"""Newton's method block by block, each solved by conjugate gradients (Dangel, Harmeling & Hennig 2020)."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.accumulate.sums import LOSS
from hbpcompiler.compiled import Compiled
from hbpcompiler.compiled import compile as compile_model
from hbpcompiler.errors import IndefiniteCurvatureWarning, UnsupportedOpError
from hbpcompiler.operators.conjugate_gradients import Solution, conjugate_gradients
from hbpcompiler.optim.base import CurvatureOptimizer
from hbpcompiler.optim.programs import GRADIENT, Gradient
from hbpcompiler.optim.settings import Checked, options_of_compile
from hbpcompiler.optim.together import Part, Parts, all_finite
from hbpcompiler.quantities import OF_LOSS
from hbpcompiler.result import Result
from hbpcompiler.schemes import HESSIAN, SCHEMES


class BlockNewton(CurvatureOptimizer):
    """theta <- theta - lr (H + l2 + damping)^-1 (grad L + l2 theta) for each parameter, with H its own block of the
    batch's curvature.

    H is never formed: conjugate gradients need products with it, which come from what one pass of the batch has kept
    (`Compiled.block_product`).

    Args:
        model: as for `KFAC`.
        loss: as there.
        params: as there.
        curvature: "hessian", "ggn", "pch_abs" or "pch_clip", as `hbp.compile` has it: the last two are the Hessian with
            the negative eigenvalues of the operations' residuals made positive or dropped. With "hessian" a block may
            be indefinite: conjugate gradients stop where they notice, at the latest with a step along the gradient, in
            whose length the curvature counts by its absolute value.
        lr: of the step. Blocks know nothing of each other, and together they overshoot where parameters do the same
            thing: 1 is for one parameter alone. A weight and its bias are two blocks: with inputs whose mean is far
            from zero (pixels) a step of 1 overshoots, and may diverge, even on one layer; with 0.5 two blocks do not.
        damping: added to H; 0 is allowed.
        l2: of a term l2/2 |theta|^2 in the loss: in the gradient and in the curvature, and not in p.grad.
        most_iterations: of `conjugate_gradients`, for each block.
        tolerance: likewise.
        progress: likewise.
        seed: as for `KFAC`.
        group: as there; products are added up over the ranks, one message for each iteration of a block.
        options: as there.

    `solutions` says how the last step's were found, by parameter. Raises UnsupportedOpError in the first step where the
    loss is not known to be convex, but with "hessian"; the parameters are untouched then.
    """

    numbers: Mapping[str, dict[str, Any]] = {"lr": {}, "damping": {}, "l2": {}}

    def __init__(self, model: Any, loss: Callable[..., Tensor] | None = None, params: Any = None, *, lr: float = 0.5,
                 damping: float = 1.0, l2: float = 0.0, curvature: str = "ggn", most_iterations: int = 50,
                 tolerance: float = 1e-10, progress: float = 5e-4, seed: int = 0,
                 group: Any = None, **options: Any) -> None:
        checked = Checked("this optimizer")
        checked.one_of("curvature", curvature, tuple(SCHEMES))
        checked.whole("most_iterations", most_iterations)
        checked.number("tolerance", tolerance)
        checked.number("progress", progress)
        checked.whole("seed", seed, least=0)
        checked.done()
        super().__init__(model, loss, params, {"lr": lr, "damping": damping, "l2": l2}, group)
        self.most_iterations, self.tolerance, self.progress, self.seed = most_iterations, tolerance, progress, seed
        self.curvature_name = curvature
        self.solutions: dict[str, Solution] = {}
        self._compiled: Compiled = compile_model(self.model, self.loss, ["grad", "block"], curvature=curvature,
                                                 **options_of_compile(options))
        self._result: Result | None = None

    def _gradient(self, batch: tuple[Any, ...]) -> tuple[Tensor, Gradient | None]:
        self.solutions = {}
        found = self._together.averaged(self.model, batch, lambda: (self._compiled, self._parts(batch)))
        if not all_finite(found.values()):
            self._result = None
        loss = found.pop((LOSS, ""))
        return loss, None if self._result is None else {name: part for (_, name), part in found.items()}

    def _parts(self, batch: tuple[Any, ...]) -> Parts:
        """This rank's; the result is kept for the products."""
        own = random.Random(f"{self.seed}, step {self.steps}, rank {self._together.ranks.rank}").getrandbits(62)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IndefiniteCurvatureWarning)  # an error, but with the Hessian itself
            result = self._result = self._together.on_samples(
                self.model, batch, lambda given: self._compiled._drawn_by_sample(
                    self._together.keys(self.seed, self.steps), given, {},
                    generator=torch.Generator().manual_seed(own)))
        if self.curvature_name != HESSIAN and self._compiled._current().draft.plan.indefinite:
            raise UnsupportedOpError("the loss is not known to be convex in the model's output, so that "
                                     f"{self.curvature_name!r} may be indefinite. Train with curvature='hessian', "
                                     "whose blocks may be so: conjugate gradients stop where they notice")
        return {(LOSS, ""): Part(OF_LOSS, result.loss, ""),
                **{(GRADIENT, name): Part(OF_LOSS, part, name) for name, part in result.grad.items()}}

    def _move(self, batch: tuple[Any, ...], loss: Tensor, gradient: Gradient) -> None:
        result, self._result = self._result, None
        assert result is not None
        groups, parameters = self._groups(), self._chosen()
        for name, part in gradient.items():
            def product(vector: Tensor, name: str = name) -> Tensor:
                return self._together.total(lambda: self._compiled.block_product(result, name, vector), vector)

            group = groups[name]
            self.solutions[name] = conjugate_gradients(product, part.neg().sub_(parameters[name], alpha=group["l2"]),
                                                       damping=group["damping"] + group["l2"],
                                                       most_iterations=self.most_iterations, tolerance=self.tolerance,
                                                       progress=self.progress)
        for name, found in self.solutions.items():
            parameters[name].add_(found.x, alpha=groups[name]["lr"])
