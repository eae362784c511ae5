"""The command `hbp tune`: measure this machine once, so that plans are made for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import click
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hbpcompiler.compiler.cost.figures import Machine
from hbpcompiler.compiler.tune import measured as tuning
from hbpcompiler.compiler.tune.calibrate import calibrate
from hbpcompiler.compiler.tune.thresholds import measure_limits
from hbpcompiler.limits import DEFAULT_LIMITS, MEASURED, Limits

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


@click.command()
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:1.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True,
              help="Type to measure with.")
@click.option("--clear", is_flag=True, help="Forget all that was measured, and plan for the default figures again.")
@click.option("--show", is_flag=True, help="Only show the figures and limits in force, measured or not.")
def tune(device: str, dtype: str, clear: bool, show: bool) -> None:
    """Measure this machine, for plans that suit it; takes seconds.

    The figures are kept in the cache folder, for this device, type, torch version and number of threads. From then on
    generated files depend on them, and say so in their head; until then one model gives one file on every machine.
    """
    if clear:
        click.echo("forgotten" if tuning.clear() else "nothing was measured")
        return
    place, kind = _device(device), DTYPES[dtype]
    if show:
        _print(place, kind, tuning.measured_machine(place, kind), tuning.measured_limits(place, kind),
               [name for name, *_ in DEFAULT_LIMITS.rows()])
        return
    machine, limits = calibrate(place, kind), measure_limits(place, kind)
    tuning.remember_machine(place, kind, machine)
    path = tuning.remember_limits(place, kind, limits)
    _print(place, kind, machine, limits, MEASURED)
    click.echo(f"kept in {path}")


def _print(device: torch.device, dtype: torch.dtype, machine: Machine, limits: Limits, names: Sequence[str]) -> None:
    """Tables of the machine's figures, and of these limits."""
    default, title, console = tuning.default_machine(device, dtype), tuning.key(device, dtype), Console(width=120)
    figures = _table(title, "figure", "in force", "default")
    for field in fields(Machine):
        now, before = getattr(machine, field.name), getattr(default, field.name)
        figures.add_row(field.name.replace("_", " "), f"{now:.2g}", f"{before:.2g}")
    console.print(figures)
    shown = _table("Limits", "limit", "in force", "default", "unit", "reason")
    for name, value, unit, reason in limits.rows():
        if name in names:
            shown.add_row(name, str(value), str(getattr(limits.nearest(), name)), unit, reason)
    console.print(shown)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=Text(title))
    for heading in headings:
        table.add_column(heading)
    return table


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise click.BadParameter(f"'{name}' cannot be used: {str(error).splitlines()[0]}") from error
    return device
