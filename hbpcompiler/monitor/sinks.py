"""Where numbers go besides the log: TensorBoard's SummaryWriter, a run of wandb, or a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hbpcompiler.errors import OptionError

Sink = Callable[[int, Mapping[str, Any]], None]
"""(step, values), as the log has them."""


def sink_of(target: Any) -> Sink:
    """OptionError for what is none of these."""
    if hasattr(target, "add_scalar"):
        return _to_writer(target)
    if hasattr(target, "log") and callable(target.log):
        return _to_run(target)
    if callable(target):
        sink: Sink = target
        return sink
    raise OptionError("monitor.to takes a SummaryWriter, a run of wandb, or a function of (step, values), not "
                      f"{type(target).__name__}")


def flat(values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers alone, those by parameter as "grad_norm/0.weight"; histograms are left out."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{key}": part for key, part in value.items() if isinstance(part, int | float)}
        elif isinstance(value, int | float):
            found[name] = value
    return found


def _to_writer(writer: Any) -> Sink:
    def write(step: int, values: Mapping[str, Any]) -> None:
        for name, value in flat(values).items():
            writer.add_scalar(f"hbp/{name}", value, step)

    return write


def _to_run(run: Any) -> Sink:
    """wandb counts its own steps, so that the monitor's is a value beside the others."""
    if hasattr(run, "define_metric"):
        run.define_metric("hbp/step")
        run.define_metric("hbp/*", step_metric="hbp/step")

    def write(step: int, values: Mapping[str, Any]) -> None:
        run.log({"hbp/step": step, **{f"hbp/{name}": value for name, value in flat(values).items()}})

    return write
