"""`hbp.Monitor`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.callers import level_of_caller
from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.checks import check_batch
from hbpcompiler.errors import HbpError, InputError, MonitorWarning, OptionError, listing
from hbpcompiler.monitor import pairs
from hbpcompiler.monitor.eigenvalue import Sharpness
from hbpcompiler.monitor.pairs import Pending
from hbpcompiler.monitor.programs import BATCH_NORM, Programs, in_eval, in_short, mixing
from hbpcompiler.monitor.record import Record
from hbpcompiler.monitor.schedules import Schedule
from hbpcompiler.monitor.seen import Seen
from hbpcompiler.monitor.sinks import Sink, sink_of
from hbpcompiler.monitor.table import OPTIMIZER, SGD, Tracked, chosen, learning_rate
from hbpcompiler.options import check_model
from hbpcompiler.result import Result
from hbpcompiler.runs import Run
from hbpcompiler.wrappers import unwrapped

FORMAT = "hbpcompiler monitor 1"


class Monitor:
    """Watches a training run: losses, norms, noise and curvature of the gradient, step by step, in a log.

        monitor = hbp.Monitor(model, loss, optimizer, track="economy", every=16, log="run.jsonl")
        for X, y in loader:
            monitor.observe(X, y)             # before the step; all else stays as it is
            optimizer.zero_grad()
            loss(model(X), y).backward()
            optimizer.step()

    The monitor computes on its own, by compiled programs: `p.grad`, buffers and random generators are untouched, so
    that training with it and without it ends in the same numbers, and scaled losses, clipped or accumulated gradients
    and distributed training do not matter to it. No per-sample gradients are kept.

    Args:
        model: as for `hbp.compile`.
        loss: a mean or a sum over samples; nn.CrossEntropyLoss() by default.
        optimizer: a torch optimizer; for learning rates and `cabs` alone, so None will do.
        track: "economy", "business", "full" or "all"; names of quantities (docs/monitor.md); a `hbp.monitor.Tracked` of
            one's own; or a list of such.
        every: a number of steps; "5%", as often as keeps the monitor to that share of the time; "logarithmic"; or a
            function of the step's number. Other steps cost nothing but the one after a tracked step, where alpha ends.
        log: a file of JSON lines that is added to, and may be read at any time; one that is there is gone on with.
            None: values are in `monitor.run` alone.
        name: of the run; the file's name by default.
        gradient_edges: increasing numbers, the edges of the histograms' bins; by default bins by sign and magnitude,
            from 2^-40 to 2^24.
        parameter_edges: likewise, of the parameters' values; by default from 2^-16 to 2^8.
        seed: of the monitor's own draws (dropout, start vectors).

    Quantities that the model cannot have are left out: they are named in one MonitorWarning and in the log. Raises
    OptionError or ModelError for what makes no sense, InputError for a log that cannot be written or is not one.
    """

    def __init__(self, model: nn.Module, loss: Any = None, optimizer: Any = None, track: Any = "economy",
                 every: Any = 16, log: str | Path | None = None, *, name: str | None = None,
                 gradient_edges: Sequence[float] | Tensor | None = None,
                 parameter_edges: Sequence[float] | Tensor | None = None, seed: int = 0) -> None:
        self.model = unwrapped(model)
        self.loss = nn.CrossEntropyLoss() if loss is None else loss
        check_model(self.model, self.loss)
        self.optimizer = optimizer
        self.steps = 0
        """How many have been observed."""
        self._schedule = Schedule(every)
        self._programs = Programs(self.model, self.loss, chosen(track), seed)
        self._edges = tuple(_edges(name, given, self.model) for name, given in (
            ("gradient_edges", gradient_edges), ("parameter_edges", parameter_edges)))
        self._programs.arguments = dict(zip(("gradient_edges", "parameter_edges"), self._edges, strict=True))
        self._sharpness = Sharpness(self.model, self.loss, seed)
        self._seed = seed
        self._record = Record(log, name, _shapes(self.model))
        self.steps = self._record.first_step
        self._start: dict[str, Tensor] = {}
        self._pending: Pending | None = None
        self._sinks: list[Sink] = []
        self._began: float | None = None
        """When the first step was observed."""
        self._not_counted = 0.0
        """Seconds in steps that made programs."""
        self._in_eval = False
        self._own_buffers: bool | None = None

    # -- a step --------------------------------------------------------------------------------------------------------

    def observe(self, *batch: Any) -> bool:
        """Looks at a batch (X, y) and the parameters as they are, if this step is due: call it before each step.

        Returns whether it was. Nothing of the user's changes.
        """
        step = self.steps
        due = self._due(step)
        if due or self._pending is not None:
            with self._timed(due):
                given = check_batch(self.model, batch)
                with drawing(Draws.seeded(self._seed + step, given.tensors[0].device)):
                    self._look(step, given, batch, due, own_draws=True)
        self.steps += 1
        return due

    def step(self, *batch: Any) -> Tensor:
        """The loss of a batch; its gradient is in p.grad: in place of zero_grad(), forward and backward.

        Gradient and statistics come from one pass on steps that are due, the gradient alone on others. What a forward
        pass changes itself, such as the averages of batch norm, needs the model's own: then it is run, and observed.
        """
        given = check_batch(self.model, batch)
        if self._own_buffers is None:
            self._own_buffers = bool(mixing(self.model)) or _changes_buffers(self.model, given)
        if self._own_buffers:
            self.observe(*batch)
            return self._by_backward(given)
        step, result = self.steps, None
        due = self._due(step)
        if due or self._pending is not None:
            with self._timed(due):
                result = self._look(step, given, batch, due, own_draws=False)
        self.steps += 1
        if result is None or "grad" not in result:
            result = self._programs.gradient(batch)
        if result is None:
            return self._by_backward(given)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.grad = result.grad.get(name)
        return result.loss

    def add(self, **values: float) -> None:
        """Numbers of one's own at the present step: monitor.add(valid_accuracy=0.9)."""
        numbers = {name: float(value) for name, value in values.items()}
        step = max(0, self.steps - 1)
        self._header()
        self._record.scalars(step, numbers)
        self._send(step, numbers)

    def to(self, target: Any) -> Monitor:
        """Sends all numbers to a SummaryWriter of TensorBoard, a run of wandb, or a function of (step, values), too."""
        self._sinks.append(sink_of(target))
        return self

    # -- what is known -------------------------------------------------------------------------------------------------

    @property
    def run(self) -> Run:
        """All values of this run so far, in memory: `monitor.run.series("loss")`."""
        return self._record.run

    @property
    def left_out(self) -> dict[str, str]:
        """By quantity, why the model cannot have it."""
        return dict(self._programs.left_out)

    @property
    def tracked(self) -> tuple[str, ...]:
        """The names of what is tracked."""
        return tuple(self._programs.tracked)

    def report(self, path: str | Path) -> Any:
        """Writes a page of this run; see `hbp.report`."""
        return import_module("hbpcompiler.report").report([self.run], path)  # nobody needs it who only trains

    def state_dict(self) -> dict[str, Any]:
        """For torch.save, beside the model's: the step's number, the parameters at the start, the last eigenvector."""
        return {"format": FORMAT, "steps": self.steps, "start": dict(self._start), "last": dict(self._sharpness.last)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there; what a log has of later steps is taken again. InputError for something else's state."""
        if not isinstance(state, Mapping) or state.get("format") != FORMAT:
            raise InputError("this is not the state of a monitor")
        self.steps, self._pending = state["steps"], None
        self._start = dict(state["start"])
        self._sharpness.last = dict(state["last"])
        self._record.first_step = self.steps

    def __repr__(self) -> str:
        return (f"Monitor({type(self.model).__name__}, {len(self.tracked)} quantities, {self._schedule.text}, "
                f"steps={self.steps})")

    # -- beneath -------------------------------------------------------------------------------------------------------

    def _due(self, step: int) -> bool:
        now = self._record.elapsed()
        self._began = now if self._began is None else self._began
        return self._schedule.due(step, now - self._began - self._not_counted)

    @contextmanager
    def _timed(self, due: bool) -> Iterator[None]:
        began, made = time.perf_counter(), self._programs.made
        try:
            yield
        finally:
            seconds, new = time.perf_counter() - began, self._programs.made > made
            self._not_counted += seconds if new else 0.0
            self._schedule.took(seconds, due, new)

    def _look(self, step: int, given: Batch, batch: Sequence[Any], due: bool, own_draws: bool) -> Result | None:
        """Ends the step before, begins this one; what a program gave that has the gradient, if one did."""
        parameters = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        for name, value in parameters.items():
            if name not in self._start:
                self._start[name] = value.detach().clone()
        norms = mixing(self.model)
        with in_eval(norms):
            result, ended = self._results(step, batch, due, parameters, own_draws)
        seen = None
        if due:
            seen = self._seen(step, given, parameters, result, bool(norms))
            with in_eval(norms):
                values = self._values(seen)
        self._header()
        for number, late in ended:
            self._record.values(number, None, late)
            self._send(number, late)
        if seen is not None:
            self._record.values(step, given.samples, values)
            self._send(step, values)
            if self._programs.pairs:
                tracked = self._programs.tracked
                self._pending = pairs.begin(self.model, batch, seen, "alpha" in tracked and result is not None,
                                            lambda: self._draws(step, own_draws))
        return result if due else None

    def _results(self, step: int, batch: Sequence[Any], due: bool, parameters: Mapping[str, Tensor], own_draws: bool,
                 ) -> tuple[Result | None, list[tuple[int, dict[str, Any]]]]:
        """Of the programs, and what is known now of the step that waited."""
        pending, generator = self._pending, self._draws(step, own_draws)
        late: dict[str, Any] = {}
        way = {} if pending is None else pairs.moved(pending, parameters)
        if pending is not None and not due and pairs.stood_still(way):
            return None, []  # gradients are being accumulated
        directed = pairs.direction(pending, way) if pending is not None and pending.batch is not None else {}
        stays = pairs.stood_still(directed)
        result = None
        try:
            if due:
                result = self._programs.run(batch, None if stays or not directed else directed, generator)
            if pending is not None and "update_size" in self._programs.tracked:
                late["update_size"] = pairs.update_size(way)
            if directed:
                late["alpha"] = -1.0 if stays else self._alpha(pending, directed, batch, result, generator)
        except (HbpError, torch.OutOfMemoryError) as error:
            self._drop_failed(error)
        self._pending = None
        late = {name: value for name, value in late.items() if value is not None}
        return result, [] if pending is None or not late else [(pending.step, late)]

    def _alpha(self, pending: Pending | None, way: Mapping[str, Tensor], batch: Sequence[Any], result: Result | None,
               generator: torch.Generator | None) -> float | None:
        assert pending is not None
        end = result if result is not None and "project" in result else self._programs.at_end(batch, way, generator)
        return pairs.alpha_of(pending, way, end, pending.seen.mean, self.model, self._programs)

    def _drop_failed(self, error: Exception) -> None:
        """A program that could be made at first cannot be made for this batch."""
        if isinstance(error, InputError):
            raise error
        for name in [name for name, tracked in self._programs.tracked.items() if tracked.needs]:
            self._programs.drop(name, f"from some step on: {in_short(error)}")

    def _seen(self, step: int, given: Batch, parameters: Mapping[str, Tensor], result: Result | None,
              in_train_mode: bool) -> Seen:
        """Loss and gradient are those of the model as it trains: of another pass, where programs are of eval mode."""
        tracked = self._programs.tracked
        gradient: Mapping[str, Tensor] = {}
        if result is not None and not in_train_mode and ("grad" in result or "grad_norm" not in tracked):
            loss = result.loss
            gradient = result.grad if "grad" in result else {}
        elif "loss" in tracked or "grad_norm" in tracked:
            loss, gradient = self._programs.by_autograd(given, step)
        else:
            loss = torch.zeros(())
        self._in_eval |= in_train_mode
        mean = result is None or result.reduction != "sum"
        return Seen(step, given.samples, parameters, self._start, loss, gradient, result, mean, self.optimizer,
                    (self._edges[0], self._edges[1]), lambda: self._sharpness.at(given, step))

    def _values(self, seen: Seen) -> dict[str, Any]:
        """What each entry makes of it; one that fails is left out from then on."""
        found: dict[str, Any] = {}
        for name, tracked in list(self._programs.tracked.items()):
            why = self._missing(tracked)
            if why:
                self._programs.drop(name, why)
                continue
            try:
                value = tracked.value(seen)
            except Exception as error:
                self._programs.drop(name, f"{type(error).__name__}: {in_short(error)}")
                continue
            if value is not None:
                found[name] = _plain(value)
        return found

    def _missing(self, tracked: Tracked) -> str:
        """What is wrong with the optimizer for this entry."""
        if OPTIMIZER in tracked.asks and learning_rate(self.optimizer) is None:
            return "no optimizer was given that has learning rates"
        if SGD in tracked.asks and not _plain_sgd(self.optimizer):
            return ("it is defined for plain torch.optim.SGD with one learning rate, without momentum, weight decay "
                    "and the like")
        return ""

    def _draws(self, step: int, own: bool) -> torch.Generator | None:
        return torch.Generator().manual_seed(self._seed + step) if own else None

    def _by_backward(self, given: Batch) -> Tensor:
        args, keywords, target = given.layout.build(given.tensors)
        for parameter in self.model.parameters():
            parameter.grad = None
        loss: Tensor = self.loss(self.model(*args, **keywords), target)
        loss.backward()
        return loss.detach()

    def _header(self) -> None:
        """The header, once; later only what has been left out since."""
        new = self._record.header(self.steps, {
            "model": type(self.model).__name__,
            "loss": getattr(self.loss, "__name__", type(self.loss).__name__),
            "optimizer": _described(self.optimizer), "parameters": _shapes(self.model),
            "quantities": list(self.tracked), "left_out": self.left_out, "schedule": self._schedule.text,
            "notes": [BATCH_NORM] if self._in_eval else []})
        if new:
            warnings.warn(listing("the monitor leaves out what this model cannot have:",
                                  [f"{name}: {why}" for name, why in new.items()]), MonitorWarning,
                          stacklevel=level_of_caller())

    def _send(self, step: int, values: Mapping[str, Any]) -> None:
        """To all sinks; training goes on if one fails."""
        for sink in list(self._sinks):
            try:
                sink(step, values)
            except Exception as error:
                self._sinks.remove(sink)
                warnings.warn(f"the monitor sends no more values to one of its targets, which raised "
                              f"{type(error).__name__}: {in_short(error)}", MonitorWarning,
                              stacklevel=level_of_caller())


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in model.named_parameters() if value.requires_grad}


def _plain_sgd(optimizer: Any) -> bool:
    if type(optimizer) is not torch.optim.SGD or isinstance(learning_rate(optimizer), dict):
        return False
    return not any(group.get(option) for group in optimizer.param_groups
                   for option in ("momentum", "dampening", "weight_decay", "nesterov", "maximize"))


def _described(optimizer: Any) -> dict[str, Any]:
    """Name and plain settings of the first group."""
    if optimizer is None:
        return {}
    groups = getattr(optimizer, "param_groups", [{}])
    plain = {name: value for name, value in groups[0].items() if isinstance(value, bool | int | float | str)
             or (isinstance(value, tuple) and all(isinstance(part, int | float) for part in value))}
    return {"name": type(optimizer).__name__, **plain}


def _edges(name: str, given: Any, model: nn.Module) -> Tensor | None:
    if given is None:
        return None
    like = next(model.parameters())
    try:
        edges = torch.as_tensor(given).to(like.device, like.dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"{name} must be increasing numbers, not {given!r}") from error
    if edges.dim() != 1 or len(edges) < 2 or not bool((edges.diff() > 0).all()):
        raise OptionError(f"{name} must be two or more increasing numbers, not {given!r}")
    return edges


def _plain(value: Any) -> Any:
    """Numbers in place of tensors of one."""
    if isinstance(value, Tensor):
        return value.item() if value.dim() == 0 else value.tolist()
    return {str(key): _plain(part) for key, part in value.items()} if isinstance(value, Mapping) else value


def _changes_buffers(model: nn.Module, given: Batch) -> bool:
    """Whether a forward pass does; tried on copies of them."""
    args, keywords, _ = given.layout.build(given.tensors)
    before = dict(model.named_buffers())
    copies = {name: value.detach().clone() for name, value in before.items()}
    own = {name: value.detach() for name, value in model.named_parameters()}
    with torch.no_grad(), drawing(Draws.now(given.tensors[0].device)):
        torch.func.functional_call(model, {**own, **copies}, args, keywords)
    return any(not torch.equal(copies[name], value) for name, value in before.items())

