"""Natural gradient descent with Kronecker factors, as Martens & Grosse 2015 have it and kfac-jax is known for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from hbpcompiler.compiled import compile as compile_model
from hbpcompiler.curvature import Curvature
from hbpcompiler.errors import InputError, OptionError, listing
from hbpcompiler.operators.vectors import inner
from hbpcompiler.optim.base import CurvatureOptimizer
from hbpcompiler.optim.eigenbases import running_curvature
from hbpcompiler.optim.kinds import kind_of, split_of
from hbpcompiler.optim.preconditioner import LARGEST_FACTOR, shortening
from hbpcompiler.optim.programs import Gradient, Settings
from hbpcompiler.optim.quadratic import QuadraticModel
from hbpcompiler.optim.settings import Checked, options_of_compile

TRUSTED, DOUBTED = 0.75, 0.25
"""Of the reduction ratio: above the first the damping falls, below the second it grows (Martens & Grosse 2015, 6.5)."""
LEAST_DAMPING = 1e-3
"""In the unit of the curvature."""
DECAY_OF_DAMPING = 0.95
"""A step's part in it; k steps between two changes make it this to the power k."""


class KFAC(CurvatureOptimizer):
    """v <- momentum v - lr (C + damping + l2)^-1 (grad L + l2 theta),  theta <- theta + v - lr weight_decay theta.

        optimizer = hbp.optim.KFAC(model, loss)
        for X, y in loader:
            loss = optimizer.step(X, y)    # in place of zero_grad(), loss(model(X), y), backward() and step()

    C is the running average of `curvature`, as in `hbp.optim.Preconditioner`, whose arguments these are too: curvature,
    ema, update_every, invert_every, split, mc_samples, seed, largest_factor, group, options. On steps that update it,
    gradient and curvature come from one pass; on the others there is the gradient alone.

    Args:
        model: as for `hbp.compile`.
        loss: as there.
        params: as torch's optimizers take them, groups with numbers of their own; None: all that is trainable.
        lr: a number; None: the minimum of the quadratic model q (see `quadratic`), with the batch's exact GGN. Then
            param_groups show what it was.
        momentum: likewise. With both None they are found together (Martens & Grosse 2015, section 7).
        damping: of the curvature; a group's may be changed at any time, and enters with the next inverse.
        l2: of a term l2/2 |theta|^2 in the loss: in the gradient, in the curvature and in the quadratic model.
        weight_decay: decoupled from all of them (Loshchilov & Hutter 2019).
        norm_constraint: a bound on lr^2 <grad, C^-1 grad>, to which longer steps are cut (Ba et al. 2017).
        adapt_damping: change the damping of all groups every `adapt_every` steps by the reduction ratio
            rho = (L(theta + v) - L(theta)) / q(v) on the batch, q here without the damping, as kfac-jax has it: times
            0.95^adapt_every above 3/4, divided by it below 1/4, and where q predicts a rise, as of an lr that is too
            long (Levenberg-Marquardt), within [least_damping, most_damping]. None: where lr is None. On a small batch
            the ratio is that of the very samples the step was made for, and the damping falls for ever: with a least
            damping of 1e-8 small networks diverge after a few hundred steps of 64 to 128 samples.
        least_damping: None: 1e-3, or a group's own damping where that is lower. No group may begin below it.
        most_damping: no group may begin above it.
        reject: take a step back that has raised the batch's loss; costs a forward pass and a copy of the parameters.

    Raises as `Preconditioner` does; the parameters are untouched then.
    """

    default_curvature = "kfac"
    numbers: Mapping[str, dict[str, Any]] = {
        "lr": {"optional": True}, "momentum": {"optional": True, "most": 1.0}, "damping": {"above": True}, "l2": {},
        "weight_decay": {},
    }

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor] | None = None, params: Any = None, *,
                 lr: float | None = None, momentum: float | None = None, damping: float = 1.0, l2: float = 0.0,
                 weight_decay: float = 0.0, curvature: str | None = None, ema: float = 0.95, update_every: int = 1,
                 invert_every: int = 5, split: str | None = None, norm_constraint: float | None = None,
                 adapt_damping: bool | None = None, adapt_every: int = 5, least_damping: float | None = None,
                 most_damping: float = 1e8, reject: bool = False, mc_samples: int = 1, seed: int = 0,
                 largest_factor: int = LARGEST_FACTOR, group: Any = None, **options: Any) -> None:
        curvature = self.default_curvature if curvature is None else curvature
        kind = kind_of(curvature)
        checked = Checked("this optimizer")
        checked.number("ema", ema, most=1.0)
        checked.intervals(update_every, invert_every)
        checked.number("norm_constraint", norm_constraint, above=True, optional=True)
        if norm_constraint is not None and lr is None:
            checked.findings.append("norm_constraint is for a given lr: with lr=None the quadratic model finds the "
                                    "length of the step")
        adapt_damping = lr is None if adapt_damping is None else adapt_damping
        checked.flag("adapt_damping", adapt_damping)
        checked.flag("reject", reject)
        checked.whole("adapt_every", adapt_every)
        checked.number("least_damping", least_damping, above=True, optional=True)
        checked.number("most_damping", most_damping, above=True)
        checked.whole("largest_factor", largest_factor)
        checked.whole("mc_samples", mc_samples)
        checked.whole("seed", seed, least=0)
        checked.done()
        self.free = {"lr": lr is None, "momentum": momentum is None}
        """What the quadratic model finds."""
        self._found: dict[str, float | None] = {"lr": None, "momentum": None}
        """What it has found last."""
        self.adapt_damping, self.adapt_every = adapt_damping, adapt_every
        self.least_damping, self.most_damping = least_damping, most_damping
        super().__init__(model, loss, params, {"lr": lr, "momentum": momentum, "damping": damping, "l2": l2,
                                               "weight_decay": weight_decay}, group)
        self.curvature_name = curvature
        self.norm_constraint = norm_constraint
        self.reject = reject
        self.last_ratio: float | None = None
        """The reduction ratio when it was last computed."""
        options = options_of_compile(options) | ({"mc_samples": mc_samples} if mc_samples != 1 else {})
        settings = Settings(kind, ema, split_of(curvature, split), largest_factor, seed, update_every, invert_every,
                            options=options)
        self._running = running_curvature(self.model, self.loss, settings, self._together)
        self._model = QuadraticModel(self.model, self.loss, seed, self._together)
        self._loss_alone = compile_model(self.model, self.loss, ["batch_loss"], **options)

    def _check_group(self, checked: Checked, numbers: Mapping[str, Any]) -> None:
        """A damping that adapts begins within its bounds."""
        super()._check_group(checked, numbers)
        if checked.findings or not self.adapt_damping:
            return
        damping, least = numbers["damping"], self.least_damping
        if least is not None and least > damping:
            checked.findings.append(f"least_damping={least:g} is above its damping, {damping:g}: lower the one or "
                                    "raise the other, or leave least_damping out")
        if self.most_damping < damping:
            checked.findings.append(f"most_damping={self.most_damping:g} is below its damping, {damping:g}")

    def _check_numbers(self, checked: Checked, numbers: Mapping[str, Any]) -> None:
        """Those that the quadratic model finds may have no other value than the one that it has found."""
        for name, limits in self.numbers.items():
            if not self.free.get(name):
                checked.number(name, numbers[name], **{**limits, "optional": False})
            elif numbers[name] not in (None, self._found[name]):
                checked.findings.append(f"{name} has been set to {numbers[name]!r}, but {name}=None of this optimizer "
                                        "leaves it to the quadratic model, which sets it in each step: give a number "
                                        f"as {name} where the optimizer is made")

    def __setattr__(self, name: str, value: Any) -> None:
        """A scheduler of torch, when it is made, puts a function with this mark in the place of `step`."""
        if name == "step" and hasattr(value, "_wrapped_by_lr_sched") and self.free["lr"]:
            raise OptionError("a scheduler has nothing to schedule here: lr=None leaves the length of each step to the "
                              "quadratic model. Give a number as lr where the optimizer is made, or leave the "
                              "scheduler out")
        super().__setattr__(name, value)

    def _gradient(self, batch: tuple[Any, ...]) -> tuple[Tensor, Gradient | None]:
        return self._running.advance(batch, self.steps, self._dampings)

    def _move(self, batch: tuple[Any, ...], loss: Tensor, gradient: Gradient) -> None:
        parameters, groups = self._chosen(), self._groups()
        for name, part in gradient.items():
            if groups[name]["l2"]:
                gradient[name] = part.add(parameters[name], alpha=groups[name]["l2"])
        direction = self._running.preconditioned(gradient)
        adapting = self.adapt_damping and (self.steps + 1) % self.adapt_every == 0
        predicted = self._scale(batch, direction, gradient, groups, adapting)
        before = {name: parameters[name].clone() for name in direction} if self.reject else {}
        penalty = self._penalty() if adapting or self.reject else 0.0
        for name in list(direction):
            step, parameter, group = direction.pop(name), parameters[name], groups[name]
            velocity = self._buffer(parameter, "velocity")
            velocity.mul_(group["momentum"]).sub_(step, alpha=group["lr"])
            if group["weight_decay"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(velocity)
        if adapting or self.reject:
            self._judge(batch, loss, penalty, predicted, adapting, before)

    # -- the step's length -------------------------------------------------------------------------------------------

    def _scale(self, batch: tuple[Any, ...], direction: Gradient, gradient: Gradient,
               groups: Mapping[str, dict[str, Any]], adapting: bool) -> float:
        """Sets lr and momentum where they are free, cuts long steps; returns q at the step, if something asks for it.
        """
        if self.norm_constraint is not None:
            factor = shortening(direction, gradient, self.norm_constraint,
                                {name: groups[name]["lr"] for name in direction})
            for part in direction.values():
                part.mul_(factor)
        if not (self.free["lr"] or self.free["momentum"] or adapting):
            return 0.0
        ways, factors = self._ways(direction)
        dampings, l2 = ({name: groups[name][number] for name in direction} for number in ("damping", "l2"))
        quadratic = self._model.along(batch, ways, gradient, dampings, l2, self.steps).times(factors)
        found = quadratic.minimum([None if self.free["lr"] else 1.0, None if self.free["momentum"] else 1.0])
        for key, value in zip(("lr", "momentum"), found.tolist(), strict=True):
            if self.free[key]:
                self._found[key] = value
                for group in self.param_groups:
                    group[key] = value
        return quadratic.change(found)

    def _ways(self, direction: Gradient) -> tuple[list[Gradient], list[float]]:
        """The direction and the last step, and what to multiply them by: minus a given lr, and a given momentum. Where
        groups have different ones these are in copies of the vectors."""
        groups, parameters = self._groups(), self._chosen()
        for name in list(direction):  # each as its parameter lies in memory, not as columns of a block's
            direction[name] = direction.pop(name).contiguous()
        velocity = {name: self._buffer(parameters[name], "velocity") for name in direction}
        ways, factors = [], []
        for key, vectors, sign in (("lr", direction, -1.0), ("momentum", velocity, 1.0)):
            rates = {name: 1.0 if self.free[key] else groups[name][key] for name in vectors}
            alike = len(set(rates.values())) == 1
            ways.append(vectors if alike else {name: vector * rates[name] for name, vector in vectors.items()})
            factors.append(sign * next(iter(rates.values())) if alike else sign)
        return ways, factors

    def _judge(self, batch: tuple[Any, ...], loss: Tensor, penalty: float, predicted: float, adapting: bool,
               before: Gradient) -> None:
        """Compare what the loss did with what was predicted."""
        new = self._together.total(
            lambda: self._running.programs.call(self._loss_alone, batch, self.steps).loss, loss)
        change = float(new) + self._penalty() - (float(loss) + penalty)
        if adapting:
            self.last_ratio = change / predicted if predicted else float("nan")
            factor = DECAY_OF_DAMPING**self.adapt_every
            trust = self.last_ratio if predicted < 0 else 0.0  # of two that rise the ratio is 1, too
            for group in self.param_groups:
                if trust > TRUSTED:
                    least = LEAST_DAMPING if self.least_damping is None else self.least_damping
                    least = min(least, group["damping"])  # one that was set lower is not raised
                    group["damping"] = max(group["damping"] * factor, least)
                elif not trust >= DOUBTED:
                    group["damping"] = min(group["damping"] / factor, self.most_damping)
        if before and not change <= 0:
            for name, parameter in self._chosen().items():
                if name in before:
                    parameter.copy_(before[name])
                    self._buffer(parameter, "velocity").zero_()

    def _penalty(self) -> float:
        """The l2 term of the loss."""
        return sum(group["l2"] / 2 * float(inner(parameter, parameter))
                   for group in self.param_groups if group["l2"] for parameter in group["params"])

    def _dampings(self) -> dict[str, float]:
        """OptionError where a bias, which is in its weight's block, has another damping or l2; one that is in no group
        has its weight's, and the other way round."""
        groups, findings = self._groups(), []
        found = {name: group["damping"] + group["l2"] for name, group in groups.items()}
        for weight, bias in self._running.joined():
            if groups[bias] is self.defaults:
                found[bias] = found[weight]
            elif groups[weight] is self.defaults:
                found[weight] = found[bias]
            else:
                findings += [f"{number} of {weight} and {bias}: {groups[weight][number]:g} and {groups[bias][number]:g}"
                             for number in ("damping", "l2") if groups[weight][number] != groups[bias][number]]
        if findings:
            raise OptionError(listing("weight and bias are one block, and must have the same numbers:", findings,
                                      "Put both into one group."))
        return found

    # -- the state -----------------------------------------------------------------------------------------------------

    def curvature(self) -> Curvature:
        """The running average, without damping, as `hbp.curvature` gives it. InputError before the first step."""
        return self._running.average()

    def _own_state(self) -> dict[str, Any]:
        return {"curvature": self.curvature_name, "free": self.free, "running": self._running.state_dict()}

    def _check_own_state(self, state: Mapping[str, Any]) -> None:
        if state["curvature"] != self.curvature_name:
            raise InputError(f"this is the state of an optimizer with curvature={state['curvature']!r}, not "
                             f"{self.curvature_name!r}")
        self._running.check_state(state["running"])

    def _kept(self, state: Mapping[str, Any]) -> list[str]:
        """What the quadratic model found there, and is given here."""
        return [name for name, free in state.get("free", self.free).items() if free and not self.free[name]]

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        self._running.load_state_dict(state["running"])
        self._found = {name: self.param_groups[0][name] for name in self._found}


class KFLR(KFAC):
    """`KFAC` with the exact factors of the GGN (Botev et al. 2017) in the place of sampled ones."""

    default_curvature = "kflr"


class KFRA(KFAC):
    """`KFAC` with the factors of the recursion by averages (Botev et al. 2017); for chains of layers."""

    default_curvature = "kfra"


class EKFAC(KFAC):
    """`KFAC` in the eigenbases of the factors, with averages of the gradients' own second moments in them (George et
    al. 2018). They are averaged at every update, without an inverse; the bases are found every `invert_every` steps."""

    default_curvature = "ekfac"
