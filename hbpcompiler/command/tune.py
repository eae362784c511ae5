"""The command `hbp tune`: measure this machine once, so that plans are made for it."""

from __future__ import annotations

from dataclasses import fields

import click
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hbpcompiler.compiler.cost.figures import Machine
from hbpcompiler.compiler.tune import measured as tuning
from hbpcompiler.compiler.tune.calibrate import calibrate

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


@click.command()
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:1.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True,
              help="Type to measure with.")
@click.option("--clear", is_flag=True, help="Forget all that was measured, and plan for the default figures again.")
def tune(device: str, dtype: str, clear: bool) -> None:
    """Measure this machine, for plans that suit it; takes seconds.

    The figures are kept in the cache folder, for this device, type, torch version and number of threads. From then on
    generated files depend on them, and say so in their head; until then one model gives one file on every machine.
    """
    if clear:
        click.echo("forgotten" if tuning.clear() else "nothing was measured")
        return
    place = _device(device)
    measured = calibrate(place, DTYPES[dtype])
    default = tuning.default_machine(place, DTYPES[dtype])
    path = tuning.remember_machine(place, DTYPES[dtype], measured)
    table = Table(title=Text(tuning.key(place, DTYPES[dtype])))
    for heading in ("figure", "measured", "default"):
        table.add_column(heading)
    for field in fields(Machine):
        now, before = getattr(measured, field.name), getattr(default, field.name)
        table.add_row(field.name.replace("_", " "), f"{now:.2g}", f"{before:.2g}")
    Console(width=120).print(table)
    click.echo(f"kept in {path}")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise click.BadParameter(f"'{name}' cannot be used: {str(error).splitlines()[0]}") from error
    return device
