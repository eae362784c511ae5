"""The command; see `python -m benchmarks.training --help`."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import click
import torch

import hbpcompiler as hbp
from benchmarks.training import coverage, figure, kept, page, plan, seconds
from benchmarks.training.data import MissingDataError
from benchmarks.training.methods import METHODS
from benchmarks.training.plan import Protocol, settings_in
from benchmarks.training.results import CRITERIA
from benchmarks.training.tasks import ALL, PAPER, TASKS

STAGES = ("runs", "seconds", "report")
OTHER_STAGES = ("restore", "table", "keep")
"""Only where they are asked for."""
WORDS = {"accuracy": "the final accuracy on validation data, and the loss there where accuracies are equal",
         "valid_loss": "the final loss on validation data", "train_loss": "the final training loss"}


def named(text: str, known: tuple[str, ...], what: str) -> list[str]:
    """The names in a list with commas, each of which must be known."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise click.BadParameter(f"no {what} is called {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def at_hand(names: list[str]) -> list[str]:
    """Those whose data is there; the others are named with what they lack."""
    found = []
    for name in names:
        try:
            ALL[name].data()
            found.append(name)
        except MissingDataError as missing:
            click.echo(f"{name} is left out: {missing}", err=True)
    return found


def rows_of(protocol: Protocol, folder: Path) -> list[page.Row]:
    """What has been run so far."""
    costs, rows = seconds.read(folder), []
    for task, methods in protocol.tasks.items():
        found = {method: protocol.outcome(folder, task, method) for method in methods}
        outcomes = {method: outcome for method, outcome in found.items() if outcome is not None}
        rows.append(page.Row(task, outcomes, costs.get(task, {})))
    return rows


def report(protocol: Protocol, folder: Path, target: Path, pictures: Path, notes: list[str]) -> None:
    """The page and its pictures, of what has been run so far."""
    rows, drawn = rows_of(protocol, folder), {}
    for row in rows:
        if row.outcomes:
            path = pictures / f"training-{row.task.replace('_', '-')}.png"
            figure.draw(row.title, row.outcomes, row.costs, path)
            drawn[row.task] = Path(os.path.relpath(path, target.parent)).as_posix()
    target.parent.mkdir(parents=True, exist_ok=True)
    run = coverage.sentences(rows, protocol.tasks)
    target.write_text(page.write(rows, drawn, [*notes_of(protocol), *run, *notes]), encoding="utf-8")
    click.echo(f"written: {target}")


def notes_of(protocol: Protocol) -> list[str]:
    """How the figures came about."""
    grid = ("of each grid a part at least, and then the points beside the best one until all of those had been tried"
            if protocol.coarse else "of each grid the points that the table of hyperparameters counts"
            if protocol.settings else "the whole grids")
    return [f"Seeds are not the grid's; {grid}. Chosen by {WORDS[protocol.criterion]}.",
            "Times are not those of the runs, which may have had neighbours: the chosen settings' steps are timed by "
            "themselves, interleaved, in processor seconds of one thread, and epochs are multiplied by that. Compiling "
            "and evaluation are not in it.",
            f"hbpcompiler {hbp.__version__}, torch {torch.__version__}, {platform.machine()}, float32."]


@click.command()
@click.option("--tasks", default=",".join(TASKS), show_default=True,
              help=f"With commas; those of the paper: {', '.join(PAPER)}.")
@click.option("--optimizers", default="", help=f"With commas, of {', '.join(METHODS)}. Default: each task's own.")
@click.option("--seeds", default=10, show_default=True, help="Of each chosen setting, beside the grid's own.")
@click.option("--coarse", is_flag=True,
              help="A part of each grid, then the points beside its best one until those have been tried.")
@click.option("--epochs", type=int, default=None, help="Default: each task's own.")
@click.option("--criterion", type=click.Choice(CRITERIA), default=CRITERIA[0], show_default=True,
              help="What a setting is chosen by, at the end of training.")
@click.option("--budget", type=float, default=None,
              help="Minutes, after which no run begins; the same command goes on.")
@click.option("--jobs", default=1, show_default=True, help="Processes of one thread each.")
@click.option("--stages", default=",".join(STAGES), show_default=True,
              help="With commas: train what is missing, time the steps, write page and pictures. Also: restore, "
                   "before these, the runs that the repository keeps into the folder of results; table, after them, a "
                   "short one of the folder's runs; keep, at last, the folder's runs among those that are kept.")
@click.option("--settings", default=None, type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A file of settings that an earlier search has found, whose grids are not tried again: "
                   "benchmarks/training/settings.json.")
@click.option("--kept", "file", default=str(kept.FILE), help="The file of restore and keep. Default: the repository's.")
@click.option("--rounds", default=5, show_default=True, help="Measurements of each optimizer's steps, in turns.")
@click.option("--page", "target", default="out/training/training-results.md", show_default=True)
@click.option("--pictures", default="out/training/assets", show_default=True)
@click.option("--note", "remarks", multiple=True, help="A line for the page, on how its figures came about.")
@click.option("--results", default="out/training", show_default=True, help="The folder with one file for each run.")
def main(tasks: str, optimizers: str, seeds: int, coarse: bool, epochs: int | None, criterion: str,
         budget: float | None, jobs: int, stages: str, settings: Path | None, file: str, rounds: int, target: str,
         pictures: str, remarks: tuple[str, ...], results: str) -> None:
    """Train, tune, compare."""
    torch.set_num_threads(1)
    chosen = at_hand(named(tasks, tuple(ALL), "task"))
    methods = named(optimizers, tuple(METHODS), "optimizer")
    protocol = Protocol({task: methods or ALL[task].methods for task in chosen}, seeds, coarse, epochs, criterion,
                        {} if settings is None else settings_in(settings))
    folder = Path(results)
    wanted = named(stages, (*STAGES, *OTHER_STAGES), "stage")
    if "restore" in wanted:
        click.echo(f"restored: {kept.restore(folder, Path(file))} runs of {file}")
    if "runs" in wanted and not plan.execute(protocol, folder, jobs, None if budget is None else 60 * budget):
        click.echo("the budget has ended before all runs were done; the same command goes on")
    if "seconds" in wanted:
        seconds.update(folder, {task: protocol.timed_points(folder, task) for task in chosen}, rounds)
    if "report" in wanted:
        report(protocol, folder, Path(target), Path(pictures), list(remarks))
    if "table" in wanted:
        click.echo(page.short_table(rows_of(protocol, folder)), nl=False)
    if "keep" in wanted:
        click.echo(f"kept: {kept.keep(folder, Path(file))} runs in {file}")


if __name__ == "__main__":
    main()
