"""Steps divided by a diagonal of curvature: damped, as Sophia, as AdaHessian."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from hbpcompiler.errors import InputError, OptionError
from hbpcompiler.optim.base import CurvatureOptimizer
from hbpcompiler.optim.kinds import KINDS, kind_of
from hbpcompiler.optim.programs import Gradient, Settings
from hbpcompiler.optim.running import RunningCurvature
from hbpcompiler.optim.settings import Checked, options_of_compile

DAMPED, SOPHIA, ADAHESSIAN = "damped", "sophia", "adahessian"
STARTING: Mapping[str, Mapping[str, float]] = {
    DAMPED: {"lr": 0.1, "momentum": 0.9, "eps": 1e-12},
    SOPHIA: {"lr": 3e-3, "momentum": 0.96, "eps": 1e-12},
    ADAHESSIAN: {"lr": 0.01, "momentum": 0.9, "eps": 1e-2},
}
"""By rule, as the steps' units differ: the best of a small grid that trains all of logistic regression, MLP, CNN and
transformer on scikit-learn's digits (docs/training.md)."""


class Diagonal(CurvatureOptimizer):
    """A step from the mean gradient m = EMA(grad L, momentum) and the mean diagonal h of curvature.

    rule="damped":      theta <- theta - lr m / (h + damping)
    rule="sophia":      theta <- theta - lr clip(m / max(clip_scale h, eps), -1, 1)            (Liu et al. 2023, 2.2)
    rule="adahessian":  theta <- theta - lr m_hat / (sqrt(EMA(h^2)) ^ power + eps)             (Yao et al. 2021, eq. 9)

    and theta <- theta - lr weight_decay theta before it. Means are without bias at the start, as everywhere here, but
    Sophia's m, which is not corrected there either. For AdaHessian the squares are averaged; its averages over parts of
    a weight are left out, as an exact or sampled diagonal of ours is less noisy than Hutchinson's estimate.

    Args:
        model: as for `KFAC`.
        loss: as there.
        params: as there.
        curvature: "diag_ggn_mc", "diag_ggn", "diag_h_abs", "diag_h_clip", "second_moment". diag_ggn_mc is Sophia-G's
            estimator without cross terms between samples.
        lr: of the step, a number of a group as all these are. None: the rule's own, 0.1 (damped), 0.003 (sophia), 0.01
            (adahessian).
        momentum: the decay of the mean gradient. None: 0.96 for sophia, 0.9 for the others.
        damping: of rule="damped".
        clip_scale: of rule="sophia".
        eps: of the other two. None: 1e-12 for sophia, 0.01 for adahessian.
        power: of rule="adahessian".
        weight_decay: decoupled (Loshchilov & Hutter 2019).
        ema: the decay of h's mean.
        update_every: steps between two batches that enter it.
        mc_samples: as for `KFAC`.
        seed: as there.
        group: as there.
        options: as there.
    """

    numbers: Mapping[str, dict[str, Any]] = {
        "lr": {}, "momentum": {"most": 1.0}, "damping": {"above": True}, "clip_scale": {"above": True},
        "eps": {"above": True}, "power": {}, "weight_decay": {},
    }

    def __init__(self, model: Any, loss: Callable[..., Tensor] | None = None, params: Any = None, *,
                 lr: float | None = None, rule: str = DAMPED, curvature: str = "diag_ggn_mc",
                 momentum: float | None = None, damping: float = 0.1, clip_scale: float = 0.05,
                 eps: float | None = None, power: float = 1.0, weight_decay: float = 0.0, ema: float = 0.99,
                 update_every: int = 10, mc_samples: int = 1, seed: int = 0, group: Any = None, **options: Any) -> None:
        kind = kind_of(curvature)
        if kind.others or kind.root:
            diagonals = [name for name, other in KINDS.items() if not (other.others or other.root)]
            raise OptionError(f"curvature {curvature!r} is no diagonal; choose one of {', '.join(diagonals)}")
        checked = Checked("this optimizer")
        checked.one_of("rule", rule, tuple(STARTING))
        checked.number("ema", ema, most=1.0)
        checked.whole("update_every", update_every)
        checked.whole("mc_samples", mc_samples)
        checked.whole("seed", seed, least=0)
        checked.done()
        own = {name: STARTING[rule][name] if value is None else value
               for name, value in (("lr", lr), ("momentum", momentum), ("eps", eps))}
        super().__init__(model, loss, params, {**own, "damping": damping, "clip_scale": clip_scale, "power": power,
                                               "weight_decay": weight_decay}, group)
        self.rule = rule
        self.curvature_name = curvature
        options = options_of_compile(options) | ({"mc_samples": mc_samples} if mc_samples != 1 else {})
        self._running = RunningCurvature(self.model, self.loss, Settings(
            kind, ema, "exact", 1, seed, update_every, update_every, rule == ADAHESSIAN, options),
            self._together)

    def _gradient(self, batch: tuple[Any, ...]) -> tuple[Tensor, Gradient | None]:
        return self._running.advance(batch, self.steps, None)

    def _move(self, batch: tuple[Any, ...], loss: Tensor, gradient: Gradient) -> None:
        parameters, groups = self._chosen(), self._groups()
        for name, part in gradient.items():
            parameter, group = parameters[name], groups[name]
            mean = self._buffer(parameter, "mean_gradient")
            state = self.state[parameter]
            newest = 1 - float(group["momentum"])
            if "updates" in state:  # of a state that was saved when all steps were taken to have one momentum
                state["weight"] = 1 - (1 - newest) ** state.pop("updates")
            state["weight"] = (1 - newest) * state.get("weight", 0.0) + newest
            mean.lerp_(part, newest)
            if group["weight_decay"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.sub_(self._step(mean, self._running.mean(name), group, state["weight"]), alpha=group["lr"])

    def _step(self, mean: Tensor, curvature: Tensor, group: Mapping[str, Any], weight: float) -> Tensor:
        """`weight`: of all gradients together in their mean, whatever the momentum has been in each step."""
        if self.rule == SOPHIA:
            return mean.div((curvature * group["clip_scale"]).clamp_(min=group["eps"])).clamp_(-1, 1)
        unbiased = mean / weight if weight else mean.clone()
        if self.rule == ADAHESSIAN:
            return unbiased.div_(curvature.sqrt().pow_(group["power"]).add_(group["eps"]))
        return unbiased.div_(curvature + group["damping"])

    # -- the state -----------------------------------------------------------------------------------------------------

    def _own_state(self) -> dict[str, Any]:
        return {"curvature": self.curvature_name, "rule": self.rule, "running": self._running.state_dict()}

    def _check_own_state(self, state: Mapping[str, Any]) -> None:
        if (state["curvature"], state["rule"]) != (self.curvature_name, self.rule):
            raise InputError(f"this is the state of an optimizer with curvature={state['curvature']!r}, "
                             f"rule={state['rule']!r}, not {self.curvature_name!r}, {self.rule!r}")
        self._running.check_state(state["running"])

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        self._running.load_state_dict(state["running"])
