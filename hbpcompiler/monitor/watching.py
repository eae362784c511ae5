"""One step seen by a monitor: programs run, values made of their results, the step before brought to its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import HbpError, InputError
from hbpcompiler.monitor import pairs
from hbpcompiler.monitor.eigenvalue import Sharpness
from hbpcompiler.monitor.pairs import Pending
from hbpcompiler.monitor.programs import Programs, in_eval, in_short, mixing
from hbpcompiler.monitor.seen import Seen
from hbpcompiler.monitor.settings import is_plain_sgd, plain
from hbpcompiler.monitor.table import OPTIMIZER, SGD, Tracked, learning_rate
from hbpcompiler.result import Result


class Looked(NamedTuple):
    """What has been seen."""

    result: Result | None
    """What the program gave; at a step that is not due, where alpha ends, with the gradient if it was asked for."""
    values: dict[str, Any] | None
    """Of this step, by quantity, if it is due."""
    ended: list[tuple[int, dict[str, Any]]]
    """What is known now of steps before."""


class Watching:
    """The model, what is tracked of it, and what one step leaves for the next."""

    def __init__(self, model: nn.Module, loss: Any, optimizer: Any, tracked: Mapping[str, Tracked],
                 edges: tuple[Tensor | None, Tensor | None], seed: int) -> None:
        self.model, self.optimizer, self.edges, self.seed = model, optimizer, edges, seed
        self.programs = Programs(model, loss, tracked, seed)
        self.programs.arguments = dict(zip(("gradient_edges", "parameter_edges"), edges, strict=True))
        self.sharpness = Sharpness(model, loss, seed)
        self.start: dict[str, Tensor] = {}
        """The parameters at the first step."""
        self.pending: Pending | None = None
        """A step whose end is not known yet."""
        self.in_eval = False
        """Whether programs saw batch norm in eval mode, and the user in train mode."""

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without a step that waits for its end."""
        return {**self.__dict__, "pending": None}

    def look(self, step: int, given: Batch, batch: Sequence[Any], due: bool, own_draws: bool) -> Looked:
        """Ends the step before, begins this one."""
        parameters = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        for name, value in parameters.items():
            if name not in self.start:
                self.start[name] = value.detach().clone()
        norms = mixing(self.model)
        with in_eval(norms):
            result, ended = self._results(step, batch, due, parameters, own_draws)
        values = None
        if due:
            seen = self._seen(step, given, parameters, result, bool(norms))
            with in_eval(norms):
                values = self._values(seen)
            if self.programs.pairs:
                with_alpha = "alpha" in self.programs.tracked and result is not None
                self.pending = pairs.begin(self.model, batch, seen, with_alpha, lambda: self._draws(step, own_draws))
        return Looked(result, values, ended)

    def _results(self, step: int, batch: Sequence[Any], due: bool, parameters: Mapping[str, Tensor], own_draws: bool,
                 ) -> tuple[Result | None, list[tuple[int, dict[str, Any]]]]:
        """Of the programs, and what is known now of the step that waited."""
        pending, generator = self.pending, self._draws(step, own_draws)
        late: dict[str, Any] = {}
        way = {} if pending is None else pairs.moved(pending, parameters)
        if pending is not None and not due and pairs.stood_still(way):
            return None, []  # gradients are being accumulated
        directed = {}
        begun = None if pending is None else pending.alpha
        if pending is not None and begun is not None and set(pending.parameters) <= set(parameters):
            directed = pairs.direction(begun, way)
        stays = pairs.stood_still(directed)
        result = None
        try:
            if due:
                result = self.programs.run(batch, None if stays or not directed else directed, generator)
            elif directed and not stays:
                others = () if own_draws else ("grad",)  # which `step` would take another pass for
                result = self.programs.at_end(batch, directed, generator, others)
            if pending is not None and "update_size" in self.programs.tracked:
                late["update_size"] = pairs.update_size(way)
            if directed:
                late["alpha"] = -1.0 if stays else self._alpha(pending, directed, result)
        except (HbpError, torch.OutOfMemoryError) as error:
            self._drop_failed(error)
        self.pending = None
        late = {name: value for name, value in late.items() if value is not None}
        return result, [] if pending is None or not late else [(pending.step, late)]

    def _alpha(self, pending: Pending | None, way: Mapping[str, Tensor], end: Result | None) -> float | None:
        assert pending is not None
        assert pending.alpha is not None
        assert end is not None
        return pairs.alpha_of(pending, pending.alpha, way, end, self.model, self.programs)

    def _drop_failed(self, error: Exception) -> None:
        """A program that could be made at first cannot be made for this batch."""
        if isinstance(error, InputError):
            raise error
        for name in [name for name, tracked in self.programs.tracked.items() if tracked.needs]:
            self.programs.drop(name, f"from some step on: {in_short(error)}")

    def _seen(self, step: int, given: Batch, parameters: Mapping[str, Tensor], result: Result | None,
              in_train_mode: bool) -> Seen:
        """Loss and gradient are those of the model as it trains: of another pass, where programs are of eval mode."""
        tracked = self.programs.tracked
        gradient: Mapping[str, Tensor] = {}
        if result is not None and not in_train_mode and ("grad" in result or "grad_norm" not in tracked):
            loss = result.loss
            gradient = result.grad if "grad" in result else {}
        elif "loss" in tracked or "grad_norm" in tracked:
            loss, gradient = self.programs.by_autograd(given, step)
        else:
            loss = torch.zeros((), device="cpu")
        self.in_eval |= in_train_mode
        mean = result is None or result.reduction != "sum"
        return Seen(step, given.samples, parameters, self.start, loss, gradient, result, mean, self.optimizer,
                    self.edges, lambda: self.sharpness.at(given, step))

    def _values(self, seen: Seen) -> dict[str, Any]:
        """What each entry makes of it; one that fails is left out from then on."""
        found: dict[str, Any] = {}
        for name, tracked in list(self.programs.tracked.items()):
            why = self._missing(tracked)
            if why:
                self.programs.drop(name, why)
                continue
            try:
                value = tracked.value(seen)
                if value is not None:
                    found[name] = plain(value)
            except Exception as error:
                self.programs.drop(name, f"{type(error).__name__}: {in_short(error)}")
        return found

    def _missing(self, tracked: Tracked) -> str:
        """What is wrong with the optimizer for this entry."""
        if OPTIMIZER in tracked.asks and learning_rate(self.optimizer) is None:
            if any("lr" in group for group in getattr(self.optimizer, "param_groups", ())):
                return "with lr=None the optimizer finds the length of each step by itself: there is no learning rate"
            return "no optimizer was given that has learning rates"
        if SGD in tracked.asks and not is_plain_sgd(self.optimizer):
            return ("it is defined for plain torch.optim.SGD with one learning rate, without momentum, weight decay "
                    "and the like")
        return ""

    def _draws(self, step: int, own: bool) -> torch.Generator | None:
        return torch.Generator().manual_seed(self.seed + step) if own else None
