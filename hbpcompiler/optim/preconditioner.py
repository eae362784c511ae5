"""`hbp.optim.Preconditioner`: a gradient divided by damped curvature, for any optimizer of torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.errors import InputError, OptionError
from hbpcompiler.operators.vectors import inner
from hbpcompiler.optim.base import warn_of_skipped
from hbpcompiler.optim.eigenbases import running_curvature
from hbpcompiler.optim.kinds import kind_of, split_of
from hbpcompiler.optim.programs import Gradient, Settings
from hbpcompiler.optim.settings import Checked, options_of_compile
from hbpcompiler.optim.together import Together, all_finite
from hbpcompiler.options import check_model
from hbpcompiler.patterns import fitting
from hbpcompiler.system.threads import trainable_of
from hbpcompiler.tied_names import tied_elsewhere
from hbpcompiler.wrappers import unwrapped

LARGEST_FACTOR = 4096
"""The longest side of a weight that has Kronecker factors: such a factor takes 64 MB, its eigenvectors 20 s a time."""
FORMAT = "hbpcompiler preconditioner 1"


class Preconditioner:
    """Puts (C + damping)^-1 grad L into `p.grad`, with C a running average of curvature.

        pre = hbp.optim.Preconditioner(model, loss, curvature="kfac", damping=0.1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
        for X, y in loader:
            loss = pre.step(X, y)          # in place of zero_grad(), loss(model(X), y) and backward()
            optimizer.step()

    C is block-diagonal. With Kronecker factors it is B (x) A for weights, with their biases (as `joint_bias`), and the
    diagonal of the same matrix for parameters that have no factors: embeddings and other weights with a side longer
    than `largest_factor`, scales and shifts of norms, tensors that meet no inputs.

    Args:
        model: as for `hbp.compile`.
        loss: a mean or a sum over samples; nn.CrossEntropyLoss() by default.
        curvature: "diag_ggn", "diag_ggn_mc", "second_moment"; "diag_h_abs" and "diag_h_clip", the average of diag_h
            with its negative entries made positive or zero; "kfac", "kflr", "kfra", "kfac_reduce", "kflr_reduce",
            "kfac_emp", "kfac_emp_reduce"; "ekfac", "ekfac_exact", "ekfac_emp": the eigenvectors of kfac's, kflr's and
            kfac_emp's factors with eigenvalues of their own (George et al. 2018), which are averaged in them and begin
            anew with each inverse; "blocks" and "blocks_mc", each parameter's whole block of the GGN.
        damping: a positive number, or a dict of them by shell patterns of parameter names, each of which must match.
        ema: the decay of the running average; 1: all batches count the same. It is unbiased from the first step on.
        update_every: steps between two batches whose curvature enters the average. The steps between compute the
            gradient alone.
        invert_every: steps between two inverses, a multiple of update_every.
        split: how the damping meets Kronecker factors: "pi", shared by both (Martens & Grosse 2015, section 6.3;
            Dangel, Kunstner & Hennig 2020, equations 28 and 29); "exact", added to the eigenvalues of their product.
            None: "pi", and "exact" for ekfac's.
        kl_clip: if given, the gradient is multiplied by min(1, sqrt(kl_clip / (lr^2 <grad, preconditioned grad>))),
            with `lr` the optimizer's own rate: a bound on the step's length in the norm of C.
        lr: for kl_clip; it may be changed from step to step, and be 0 where a schedule ends there.
        mc_samples: for the sampled curvatures.
        seed: of the draws, which depend on it and on the step's number alone; torch's generators stay untouched.
        largest_factor: see above.
        skip: shell patterns of the parameters whose gradients stay as they are, and of which no curvature is computed;
            each must match.
        group: a torch.distributed group, each of whose ranks gives `step` its part of the batch, of any size, or none:
            p.grad is that of the whole batch on all, eigenvectors are found by one rank each, and samples draw as they
            would on one rank. kfra does not add up: each rank finds it of the whole batch, and gains no time.
        options: of `hbp.compile`, for both programs.

    Raises OptionError or ModelError for what makes no sense, and at the first batch what `hbp.compile` raises for a
    model that has not the curvature. p.grad is untouched then.
    """

    def __init__(self, model: nn.Module, loss: Any = None, curvature: str = "kfac",
                 damping: float | Mapping[str, float] = 1e-2, *, ema: float = 0.95, update_every: int = 1,
                 invert_every: int = 10, split: str | None = None, kl_clip: float | None = None, lr: float = 1.0,
                 mc_samples: int = 1, seed: int = 0, largest_factor: int = LARGEST_FACTOR, skip: Sequence[str] = (),
                 group: Any = None, **options: Any) -> None:
        kind = kind_of(curvature)
        checked = Checked("this preconditioner")
        checked.number("ema", ema, above=False, most=1.0)
        checked.intervals(update_every, invert_every)
        checked.whole("largest_factor", largest_factor)
        checked.whole("seed", seed, least=0)
        self.damping = damping
        self.kl_clip, self.lr = kl_clip, lr
        self._check_numbers(checked)
        checked.done()
        self.model = unwrapped(model)
        loss = nn.CrossEntropyLoss() if loss is None else loss
        check_model(self.model, loss)
        self.curvature_name = curvature
        self.steps = 0
        """How many there have been, without those that were left out."""
        self.skipped = 0
        """The batches that were left out, as their loss or gradient was not finite."""
        self._together = Together(group)
        self._skipped = self._matching(skip)
        self._dampings()
        options = options_of_compile(options) | ({"mc_samples": mc_samples} if mc_samples != 1 else {})
        settings = Settings(kind, ema, split_of(curvature, split), largest_factor, seed, update_every, invert_every,
                            options=options, skipped=self._skipped)
        self._running = running_curvature(self.model, loss, settings, self._together)

    def step(self, *batch: Any) -> Tensor:
        """The loss of a batch (X, y); its preconditioned gradient is in p.grad of the trainable parameters.

        p.grad is overwritten. Parameters that do not reach the loss get None, as from zero_grad().
        """
        loss, gradient = self.gradient(*batch)
        self._set({} if gradient is None else self._preconditioned(gradient))
        return loss

    def gradient(self, *batch: Any) -> tuple[Tensor, Gradient | None]:
        """(loss, gradient by name), with the curvature brought up to date where it is time for that: `step` without its
        end, so that p.grad is as it was. For gradients that something else happens to first; then call `precondition`.
        The gradient is None where it, or the loss, is not finite. Raises OptionError where `damping`, `kl_clip` or `lr`
        has been set to what makes no sense."""
        self._together.begin(self.model, batch, self._check_step)
        loss, gradient = self._running.advance(batch, self.steps, self._dampings)
        if gradient is None:
            self._skip()
        else:
            self.steps += 1
        return loss, gradient

    def precondition(self) -> None:
        """Multiply what is in p.grad, of whatever origin: accumulated over batches, unscaled, clipped. Where not all of
        it is finite it becomes None. With a group it has to be the same on all ranks. InputError where there is none.
        """
        gradient = {name: parameter.grad for name, parameter in self._trainable().items() if parameter.grad is not None}
        self._together.check_alike(gradient)
        if not gradient:
            raise InputError("no parameter has a gradient: call loss.backward() first, or step(X, y), which is both; "
                             "gradient(X, y) returns (loss, gradient by name), and leaves p.grad as it is")
        if all_finite(gradient.values()):
            self._set(self._preconditioned(gradient))
        else:
            self._skip()
            self._set({})

    def _check_numbers(self, checked: Checked) -> None:
        """Those that may be changed from step to step."""
        checked.number("kl_clip", self.kl_clip, above=True, optional=True)
        checked.number("lr", self.lr)
        for pattern, value in self.damping.items() if isinstance(self.damping, Mapping) else [("", self.damping)]:
            checked.number(f"damping of {pattern!r}" if pattern else "damping", value, above=True)

    def _check_step(self) -> None:
        checked = Checked("this step")
        self._check_numbers(checked)
        if self._skipped and not self._trainable().keys() - self._skipped:
            checked.findings.append("skip: all parameters that are trainable now are among the skipped ones")
        checked.done()

    def _skip(self) -> None:
        self.skipped += 1
        if self.skipped == 1:
            warn_of_skipped()

    def curvature(self) -> Any:
        """The running average, without damping, as `hbp.curvature` gives it. InputError before the first step."""
        return self._running.average()

    # -- beneath -------------------------------------------------------------------------------------------------------

    def _preconditioned(self, gradient: Gradient) -> Gradient:
        found = self._running.preconditioned(gradient)
        if self.kl_clip is not None:
            factor = shortening(found, gradient, self.kl_clip, dict.fromkeys(found, self.lr))
            found = {name: part.mul_(factor) for name, part in found.items()}
        found |= {name: gradient[name] for name in gradient.keys() & self._skipped}
        self._together.mean(list(found.values()))
        return found

    def _set(self, gradient: Gradient) -> None:
        for name, parameter in self._trainable().items():
            parameter.grad = None if name not in gradient else _laid_as(parameter, gradient[name])

    def _trainable(self) -> dict[str, nn.Parameter]:
        return trainable_of(self.model)

    def _matching(self, skip: Sequence[str]) -> frozenset[str]:
        """OptionError for patterns that match none, and where nothing is left."""
        names = [name for name, _ in self.model.named_parameters()]
        patterns = [skip] if isinstance(skip, str) else [*skip]
        found = {pattern: fitting(names, pattern) for pattern in patterns}
        if unknown := [pattern for pattern, matching in found.items() if not matching]:
            raise OptionError(f"skip: {', '.join(map(repr, unknown))} matches no parameter; there are "
                              f"{', '.join(names)}")
        if tied := tied_elsewhere(self.model, patterns):
            raise OptionError(f"skip: {'; '.join(tied)}")
        skipped = frozenset(name for matching in found.values() for name in matching)
        if len(skipped) == len(names):
            raise OptionError("skip: no parameter is left to divide by curvature")
        return skipped

    def _dampings(self) -> dict[str, float]:
        """By parameter. OptionError for patterns that match none, and parameters that none matches."""
        names = [name for name, _ in self.model.named_parameters()]
        if not isinstance(self.damping, Mapping):
            return dict.fromkeys(names, float(self.damping))
        found: dict[str, float] = {}
        for pattern, value in self.damping.items():
            matching = fitting(names, pattern)
            if not matching:
                raise OptionError(f"damping: {pattern!r} matches no parameter; there are {', '.join(names)}")
            if tied := tied_elsewhere(self.model, [pattern]):
                raise OptionError(f"damping: {'; '.join(tied)}")
            found |= dict.fromkeys(matching, float(value))
        if missing := [name for name in names if name not in found and name not in self._skipped]:
            raise OptionError(f"damping: there is none for {', '.join(missing)}; '*' first in the dict gives the rest")
        return found

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """For torch.save: averages, the inverse in use, the number of steps. A run that loads it goes on bit-equal."""
        return {"format": FORMAT, "curvature": self.curvature_name, "steps": self.steps,
                "running": self._running.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises InputError for the state of something else; nothing is changed then."""
        if not isinstance(state, Mapping) or state.get("format") != FORMAT:
            raise InputError("this is not the state of a preconditioner")
        if state["curvature"] != self.curvature_name:
            raise InputError(f"this is the state of a preconditioner with curvature={state['curvature']!r}, not "
                             f"{self.curvature_name!r}")
        self._running.check_state(state["running"])
        self._running.load_state_dict(state["running"])
        self.steps = state["steps"]

    def __repr__(self) -> str:
        return (f"Preconditioner({type(self.model).__name__}, curvature={self.curvature_name!r}, "
                f"damping={self.damping!r}, steps={self.steps})")


def _laid_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in memory of its own, and not as a part of one with the bias's: casts of a model exchange it."""
    if not gradient._is_view() and gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)


def shortening(direction: Gradient, gradient: Gradient, bound: float, rates: Mapping[str, float]) -> float:
    """min(1, sqrt(bound / sum lr^2 <direction, gradient>)), by which a step is made no longer than the bound; each
    parameter has its rate."""
    product = abs(float(sum(rates[name] ** 2 * inner(part, gradient[name]) for name, part in direction.items())))
    return 1.0 if not product > bound else math.sqrt(bound / product)
