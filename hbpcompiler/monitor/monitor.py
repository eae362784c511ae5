"""`hbp.Monitor`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.checks import check_batch
from hbpcompiler.errors import LogWarning, MonitorWarning, listing
from hbpcompiler.monitor.programs import BATCH_NORM, in_short, mixing
from hbpcompiler.monitor.record import Record
from hbpcompiler.monitor.schedules import Schedule
from hbpcompiler.monitor.settings import (
    changes_buffers,
    check_optimizer,
    check_state,
    described,
    edges_of,
    numbers_of,
    ordinary,
    shapes_of,
)
from hbpcompiler.monitor.sinks import Sink, sink_of
from hbpcompiler.monitor.table import chosen
from hbpcompiler.monitor.watching import Watching
from hbpcompiler.options import check_model
from hbpcompiler.result import Result
from hbpcompiler.runs import Run
from hbpcompiler.system.callers import level_of_caller
from hbpcompiler.system.threads import Lock
from hbpcompiler.wrappers import unwrapped

FORMAT = "hbpcompiler monitor 1"
WITHOUT_STATE = ("the log is gone on with behind its last tracked step, without monitor.load_state_dict, which knows "
                 "where the parameters began")


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
        check_optimizer(optimizer, self.model)
        self.optimizer = optimizer
        self._one_at_a_time = Lock()
        """Held while a step is looked at and counted, whichever thread observes it."""
        self._steps = self._idle_until = 0
        """How many have been observed, and the step before which there is nothing to do."""
        self._schedule = Schedule(every)
        edges = (edges_of("gradient_edges", gradient_edges, self.model),
                 edges_of("parameter_edges", parameter_edges, self.model))
        self._watching = Watching(self.model, self.loss, optimizer, chosen(track), edges, seed)
        self._programs = self._watching.programs
        self._seed = seed
        self._record = Record(log, name, shapes_of(self.model))
        self.steps = self._record.first_step
        self._sinks: list[Sink] = []
        self._own_buffers: bool | None = None

    # -- a step --------------------------------------------------------------------------------------------------------

    def observe(self, *batch: Any) -> bool:
        """Looks at a batch (X, y) and the parameters as they are, if this step is due: call it before each step.

        Returns whether it was. Nothing of the user's changes.
        """
        with self._one_at_a_time:
            step = self._steps
            if step < self._idle_until:  # most of all calls end here: what they cost is a cold cache's misses
                self._steps = step + 1
                return False
            due = self._due(step)
            if due or self._watching.pending is not None:
                with self._timed(due), torch.inference_mode(False):
                    batch = ordinary(batch)
                    given = check_batch(self.model, batch)
                    with drawing(Draws.seeded(self._seed + step, given.tensors[0].device)):
                        self._look(step, given, batch, due, own_draws=True)
            self._steps += 1
            return due

    def step(self, *batch: Any) -> Tensor:
        """The loss of a batch; its gradient is in p.grad: in place of zero_grad(), forward and backward.

        Gradient and statistics come from one pass on steps that are due, the gradient alone on others. What a forward
        pass changes itself, such as the averages of batch norm, needs the model's own: then it is run, and observed.
        """
        given = check_batch(self.model, batch)
        if self._own_buffers is None:
            self._own_buffers = bool(mixing(self.model)) or changes_buffers(self.model, self.loss, given)
        if self._own_buffers:
            self.observe(*batch)
            return self._by_backward(given)
        with self._one_at_a_time:
            step, result = self._steps, None
            due = step >= self._idle_until and self._due(step)
            if due or self._watching.pending is not None:
                with self._timed(due):
                    result = self._look(step, given, batch, due, own_draws=False)
            self._steps += 1
        if result is None or "grad" not in result:
            result = self._programs.gradient(batch)
        if result is None:
            return self._by_backward(given)
        waits = self._watching.pending is not None  # for alpha, with the gradient, which a user may clip in place
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                gradient = result.grad.get(name)
                parameter.grad = gradient.clone() if waits and gradient is not None else gradient
        return result.loss

    def add(self, **values: float) -> None:
        """Numbers of one's own at the present step: monitor.add(valid_accuracy=0.9).

        Raises InputError for a name that the monitor itself tracks something under, and for what is no number.
        """
        numbers = numbers_of(values, self._programs.tracked)
        with self._one_at_a_time:
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
    def steps(self) -> int:
        """How many have been observed."""
        return self._steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self._steps, self._idle_until = steps, 0

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
        from hbpcompiler.report import report  # which nobody needs who only trains

        return report(self.run, path)

    def state_dict(self) -> dict[str, Any]:
        """For torch.save, beside the model's: the step's number, the parameters at the start, the last eigenvector."""
        return {"format": FORMAT, "steps": self.steps, "start": dict(self._watching.start),
                "last": dict(self._watching.sharpness.last)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there; what a log has of later steps is taken again. InputError for something else's state."""
        check_state(state, {"steps", "start", "last"}, FORMAT, self.model)
        self.steps, self._watching.pending = state["steps"], None
        self._watching.start = dict(state["start"])
        self._watching.sharpness.last = dict(state["last"])
        self._record.first_step = self.steps

    def __repr__(self) -> str:
        return (f"Monitor({type(self.model).__name__}, {len(self.tracked)} quantities, {self._schedule.text}, "
                f"steps={self.steps})")

    # -- beneath -------------------------------------------------------------------------------------------------------

    def _due(self, step: int) -> bool:
        """Whether to look; where not, and no step waits for its end, also until when there is nothing to do."""
        due = self._schedule.due(step, self._record.elapsed)
        if not due and self._watching.pending is None:
            self._idle_until = self._schedule.next_due(step)
        return due

    @contextmanager
    def _timed(self, due: bool) -> Iterator[None]:
        made = self._programs.made
        try:
            yield
        finally:
            self._schedule.took(self._record.elapsed, due, self._programs.made > made)

    def _look(self, step: int, given: Batch, batch: Sequence[Any], due: bool, own_draws: bool) -> Result | None:
        """What the program gave at a step that is due; its values are written and sent."""
        if self._record.first_step and not self._watching.start:
            warnings.warn(f"{self._record.holds_a_run()}: what follows is written behind its step "
                          f"{self._record.first_step - 1}, as one run. Delete it or name another log for a run of its "
                          "own; to go on with that one, call monitor.load_state_dict before", LogWarning,
                          stacklevel=level_of_caller())
            if "distance" in self._programs.tracked:
                self._programs.drop("distance", WITHOUT_STATE)
        looked = self._watching.look(step, given, batch, due, own_draws)
        self._header()
        for number, late in looked.ended:
            self._record.values(number, None, late)
            self._send(number, late)
        if looked.values is not None:
            self._record.values(step, given.samples, looked.values)
            self._send(step, looked.values)
        return looked.result

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
            "optimizer": described(self.optimizer), "parameters": shapes_of(self.model),
            "quantities": list(self.tracked), "left_out": self.left_out, "schedule": self._schedule.text,
            "notes": [BATCH_NORM] if self._watching.in_eval else []})
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
