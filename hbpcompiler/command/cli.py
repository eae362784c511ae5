"""The command `hbp`: generate a file, explain a plan, list the rules."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from hbpcompiler.arguments import arguments_for
from hbpcompiler.command.accumulate import accumulate_command
from hbpcompiler.command.coverage import Verdict, core_coverage
from hbpcompiler.command.imported import Failure, clean_errors, made, reason
from hbpcompiler.command.report import report_command, watch_command
from hbpcompiler.command.rule_table import supported
from hbpcompiler.command.tune import DTYPES, tune
from hbpcompiler.compiled import Compiled
from hbpcompiler.compiled import compile as hbp_compile
from hbpcompiler.quantities import QUANTITIES
from hbpcompiler.rule.registry import with_rules
from hbpcompiler.schemes import HESSIAN, SCHEMES
from hbpcompiler.version import __version__

LOSSES: dict[str, tuple[type[nn.Module], Callable[[Tensor], Tensor]]] = {
    # name: the loss and a target that it takes for an output
    "cross_entropy": (nn.CrossEntropyLoss,
                      lambda out: torch.randint(out.shape[1], (len(out), *out.shape[2:]), device="cpu")),
    "mse": (nn.MSELoss, torch.randn_like),
    "huber": (nn.HuberLoss, torch.randn_like),
    "bce": (nn.BCEWithLogitsLoss, lambda out: torch.randint(2, out.shape, device="cpu").to(out.dtype)),
    "poisson": (nn.PoissonNLLLoss, lambda out: torch.randint(5, out.shape, device="cpu").to(out.dtype)),
}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="hbp")
def main() -> None:
    """Compile a PyTorch model into a readable program for gradients, their statistics and curvature.

    \b
    hbp compile torchvision.models:resnet18 ...   write the program to a file
    hbp explain ...                               show the plan behind it: streams, routes, cost, memory
    hbp rules                                     list the operations that have a derivative rule
    hbp tune                                      measure this machine, for plans that suit it
    hbp accumulate ...                            quantities of a whole data set, to a file
    hbp report run.jsonl ...                      a page about training runs that hbp.Monitor has logged
    hbp watch run.jsonl                           the same in the terminal, while the run goes on

    The generated file needs only torch. In Python the same is hbpcompiler.compile(model, quantities=[...]).
    """


main.add_command(tune)
main.add_command(accumulate_command)
main.add_command(report_command)
main.add_command(watch_command)


def _names(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


def _shapes(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> list[tuple[int, ...]]:
    shapes = []
    for value in values:
        try:
            shape = tuple(int(length) for length in value.split(",") if length.strip())
        except ValueError:
            shape = (0,)
        if any(not 1 <= length < 2**63 for length in shape):
            raise click.BadParameter(f"'{value}' is no shape; write positive numbers with commas, such as 3,32,32")
        shapes.append(shape)
    return shapes


def job(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments that `compile` and `explain` share."""
    options = [
        click.argument("factory", metavar="PKG.MODULE:FACTORY"),
        click.option("-q", "--quantities", required=True, callback=_names, metavar="NAMES",
                     help="What to compute, with commas: diag_h,kflr. `hbp rules --quantities` lists the names."),
        click.option("-i", "--input", "inputs", required=True, multiple=True, callback=_shapes, metavar="SHAPE",
                     help="Shape of one sample, without the batch: 3,32,32. Repeat it for several inputs."),
        click.option("-l", "--loss", type=click.Choice(list(LOSSES)), default="cross_entropy", show_default=True,
                     help="bce is with logits; poisson is the negative log likelihood of a log rate."),
        click.option("--reduction", type=click.Choice(["mean", "sum"]), default="mean", show_default=True,
                     help="How the loss combines the samples."),
        click.option("-b", "--batch", type=click.IntRange(min=1, max=2**62), default=64, show_default=True, metavar="N",
                     help="Batch size of the example, and N in the costs of `explain`. The program takes any."),
        click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True,
                     help="Type that model and inputs are converted to."),
        click.option("--train/--eval", "training", default=None, help="Set the mode. Default: as the factory left it."),
        click.option("--mc-samples", type=int, default=1, show_default=True, metavar="M",
                     help="Samples per datum for the sampled quantities."),
        click.option("--curvature", type=click.Choice(list(SCHEMES)), default=HESSIAN, show_default=True,
                     help="What diag_h and its kin mean by curvature: how activations' residuals enter."),
        click.option("--curvature-dtype", type=click.Choice(list(DTYPES)), default=None,
                     help="Type of the columns of curvature alone. Default: the model's."),
        click.option("--memory-budget", metavar="SIZE",
                     help="Most that a call with the example's batch size may allocate: 512MiB."),
        click.option("--autotune", is_flag=True, help="Time routes that are predicted to be about equally fast."),
        click.option("--rules", "rule_files", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
                     help="A rule file of your own. Repeat it for several."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command("compile")
@job
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Where to write the program. Default: standard output.")
def compile_command(output: Path | None, **arguments: Any) -> None:
    """Write the program that computes QUANTITIES of a model to a file.

    PKG.MODULE:FACTORY names a function or class that returns a torch.nn.Module, or the module itself. It is imported
    from the current folder or the installed packages.

    \b
    hbp compile mynet:make -q diag_h,kflr -i 3,32,32 -o derivatives.py
    hbp compile mynet:make -q variance -i 784 --loss mse --dtype float64
    """
    compiled = _compiled(**arguments)
    if output is None:
        click.echo(compiled.code, nl=False)
        return
    try:
        compiled.save(output)
    except OSError as error:
        raise Failure(f"cannot write {output}: {error.strerror}") from error
    click.echo(f"{output}: {len(compiled.code.splitlines())} lines, {', '.join(compiled.quantities)}")


@main.command()
@job
def explain(**arguments: Any) -> None:
    """Show the plan: what travels backwards, and each parameter's routes with cost and memory.

    Takes the same arguments as `hbp compile`.

    \b
    hbp explain mynet:make -q diag_h -i 3,32,32 --batch 128
    """
    click.echo(_compiled(**arguments).explain(arguments["batch"]), nl=False)


@main.command()
@click.option("--quantities", is_flag=True, help="List the quantities instead of the operations.")
@click.option("--core", is_flag=True, help="List torch's core operations, and what becomes of each.")
@click.option("--rules", "rule_files", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
              help="A rule file of your own, listed with the others.")
def rules(quantities: bool, core: bool, rule_files: tuple[Path, ...]) -> None:
    """List the operations and losses that have a rule; every quantity works with every rule.

    \b
    inputs      arguments through which derivatives flow
    parameters  arguments that may be trainable parameters
    residual    the operation's own second derivative: zero, diagonal or a factor with signed columns
    structure   what the planner exploits
    """
    if quantities:
        _print(_quantity_table())
        return
    if core:
        with clean_errors():
            _print(_core_table(core_coverage(with_rules(rule_files))))
        return
    with clean_errors():
        rows = supported(with_rules(rule_files))
    table = Table()
    for heading in ("operation", "inputs", "parameters", "residual", "structure", "file"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(row.operation, ", ".join(row.inputs), ", ".join(row.parameters), " or ".join(row.residuals),
                      " or ".join(row.structures), row.file)
    _print(table)
    click.echo(f"{len(rows)} operations. Every quantity works with every rule: {', '.join(QUANTITIES)}.\n"
               "An operation without a rule is decomposed by torch's own table where that leads to these.")


def _quantity_table() -> Table:
    table = Table()
    for heading in ("quantity", "value for each parameter", "what travels backwards"):
        table.add_column(heading)
    for quantity in QUANTITIES.values():
        table.add_row(quantity.name, quantity.summary, ", ".join(sorted(quantity.streams)))
    return table


def _core_table(verdicts: Sequence[Verdict]) -> Table:
    counts = Counter(verdict.kind for verdict in verdicts)
    table = Table(caption=", ".join(f"{count} {kind}" for kind, count in counts.most_common()))
    for heading in ("operation", "what becomes of it", "by, into or why"):
        table.add_column(heading, overflow="fold")
    for verdict in verdicts:
        table.add_row(verdict.operation, verdict.kind, verdict.detail)
    return table


def _print(table: Table) -> None:
    # A pipe has no width: nothing is to be cut there.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _compiled(
    factory: str, quantities: list[str], inputs: list[tuple[int, ...]], loss: str, reduction: str, batch: int,
    dtype: str, training: bool | None, mc_samples: int, curvature: str,
    curvature_dtype: str | None, memory_budget: str | None, autotune: bool, rule_files: tuple[Path, ...],
) -> Compiled:  # fmt: skip
    model = made(factory, nn.Module, "a torch.nn.Module").to(DTYPES[dtype])
    if training is not None:
        model.train(training)
    kind, draw = LOSSES[loss]
    with clean_errors():
        compiled = hbp_compile(model, kind(reduction=reduction), quantities, mc_samples=mc_samples,
                               curvature=curvature, memory_budget=memory_budget, autotune=autotune, rules=rule_files,
                               curvature_dtype=DTYPES[curvature_dtype] if curvature_dtype else None)
        _check_arguments(compiled.quantities)
        xs = [torch.randn(batch, *shape, dtype=DTYPES[dtype], device="cpu") for shape in inputs]
        compiled(*xs, draw(_output(model, xs)))
    return compiled


def _check_arguments(quantities: Sequence[str]) -> None:
    """Failure for quantities that need an argument of the call."""
    missing = [argument.name for argument in arguments_for(quantities) if argument.default is None]
    if missing:
        users = [name for name in quantities if set(missing) & set(QUANTITIES[name].arguments)]
        given = ", ".join(f"{name}=..." for name in missing)
        raise Failure(f"{', '.join(users)} needs {', '.join(missing)}, which a call gives and the command line cannot. "
                      f"Write it in Python: compiled = hbp.compile(model, loss, {list(quantities)}); "
                      f"compiled(X, y, {given}); compiled.save(path)")


def _output(model: nn.Module, xs: Sequence[Tensor]) -> Tensor:
    """What the model returns: its shape says what target the loss takes."""
    shapes = " and ".join(str(list(x.shape)) for x in xs)
    try:
        with torch.no_grad():
            output = model(*xs)
    except Exception as error:
        raise Failure(f"the model fails on an input of shape {shapes}: {reason(error)}. Inputs are random numbers of "
                      f"{xs[0].dtype} here; for others, such as whole numbers, write it in Python: compiled = "
                      "hbp.compile(model, loss, quantities); compiled(X, y); compiled.save(path)") from error
    if not isinstance(output, Tensor) or output.dim() < 2:
        what = f"a tensor of shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise Failure(f"the model must return one tensor [N, ...], but returned {what}")
    return output
