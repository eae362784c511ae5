"""`hbp accumulate`: quantities of a whole data set, to a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from torch import nn
from torch.utils.data import Dataset

from hbpcompiler.accumulate import accumulate
from hbpcompiler.command.imported import Failure, clean_errors, imported, made
from hbpcompiler.compiled import compile as hbp_compile


@click.command("accumulate")
@click.argument("factory", metavar="PKG.MODULE:MODEL")
@click.option("--data", required=True, metavar="PKG.MODULE:LOADER",
              help="A loader of batches (X, y), or a function that returns one.")
@click.option("-q", "--quantities", required=True, metavar="NAMES", help="With commas: grad,kfac.")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Where the totals go, every minute and at the end. hbp.Total.load reads them.")
@click.option("-l", "--loss", default=None, metavar="PKG.MODULE:LOSS",
              help="A loss module or function of (output, target). Default: cross-entropy.")
@click.option("--resume", is_flag=True, help="Go on from FILE, which an interrupted run has left.")
@click.option("--count", default=None, metavar="PKG.MODULE:COUNT",
              help="A function from a batch to the number of terms that its loss is a mean of.")
@click.option("--prepare", default=None, metavar="PKG.MODULE:PREPARE",
              help="A function from a batch, as the loader gives it, to (X, y).")
@click.option("--indices", default=None, metavar="PKG.MODULE:INDICES",
              help="A function from a batch to its samples' indices in the whole data set.")
@click.option("--max-batches", type=click.IntRange(min=1), default=None, metavar="K", help="Stop there.")
@click.option("--mc-samples", type=click.IntRange(min=1), default=1, show_default=True, metavar="M",
              help="Samples per datum for the sampled quantities.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of their draws.")
@click.option("--train/--eval", "training", default=None, help="Set the mode. Default: as the factory left it.")
def accumulate_command(factory: str, data: str, quantities: str, output: Path, loss: str | None, resume: bool,
                       count: str | None, prepare: str | None, indices: str | None, max_batches: int | None,
                       mc_samples: int, seed: int, training: bool | None) -> None:
    """Accumulate QUANTITIES of a model over all batches of a loader, as those of one batch of them would be.

    Ctrl-C saves what is done; `--resume` goes on from there.

    \b
    hbp accumulate mynet:trained --data mynet:loader -q kfac,grad -o totals.pt
    hbp accumulate mynet:trained --data mynet:loader -q kfac,grad -o totals.pt --resume
    """
    if output.exists() and not resume:
        raise Failure(f"{output} exists: pass --resume to go on from it, or remove it")
    if resume and not output.exists():
        raise Failure(f"there is no {output} to go on from; leave --resume out to begin")
    model = made(factory, nn.Module, "a torch.nn.Module")
    if training is not None:
        model.train(training)
    loader: Any = made(data, Iterable | Dataset, "an iterable of batches (X, y)",
                       "PKG.MODULE:LOADER, for example mypackage.data:loader")
    if not isinstance(loader, Iterable):
        raise Failure(f"'{data}' is a data set, {type(loader).__name__}, which gives samples, not batches: wrap it, "
                      "torch.utils.data.DataLoader(dataset, batch_size=128)")
    names = [name.strip() for name in quantities.split(",") if name.strip()]
    with clean_errors():
        compiled = hbp_compile(model, _loss(loss), names, mc_samples=mc_samples)
        places = {"count": count, "prepare": prepare, "indices": indices}
        functions: dict[str, Any] = {
            name: imported(place, f"PKG.MODULE:{name.upper()}, for example mypackage.data:{name}")
            for name, place in places.items() if place is not None}
        try:
            total = accumulate(compiled, loader, seed=seed, checkpoint=output, max_batches=max_batches, **functions)
        except KeyboardInterrupt:
            click.echo(f"interrupted: the totals so far are in {output}; --resume goes on from there"
                       if output.exists() else "interrupted before there was anything to save", err=True)
            raise
    click.echo(f"{output}: {', '.join(total.quantities)} of {total.samples} samples, loss {float(total.loss):.6g}")


def _loss(place: str | None) -> Any:
    """The loss at this place; a class is made."""
    if place is None:
        return None
    found = imported(place, "PKG.MODULE:LOSS, for example torch.nn:MSELoss")
    return found() if isinstance(found, type) else found
