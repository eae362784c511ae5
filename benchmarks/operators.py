"""`python -m benchmarks.operators`: products with whole curvature matrices as multiples of a gradient.

Ours are the public call, `A @ v`, with all that surrounds the passes. Beside them: the same products by other means of
torch, without anything around them, and curvlinops where it is installed. All are compared with each other first.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import hbpcompiler as hbp

from .networks import Problem, find, problem
from .peers import Run, gradient
from .timing import interleaved, prepare

CASES = {"mlp": 128, "3c3d": 64, "vit/32x2": 64}
"""Networks and batch sizes."""
MANY = 16
"""Vectors side by side."""
NEAR = 1e-3
"""In single precision."""

Call = Callable[[Problem], Callable[[], Any] | None]


def vectors(given: Problem, count: int) -> dict[str, Tensor]:
    """{name: [count, *theta]}, the same ones for all."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(count, *parameter.shape, generator=generator)
            for name, parameter in given.model.named_parameters()}


def ours(kind: str, count: int, chunk: int = 16, blocks: str = "auto") -> Call:
    """Where both ways are tried, they have been, at once, before the measurement."""
    def make(given: Problem) -> Callable[[], Any]:
        batch = given.inputs, given.target
        operator = hbp.operator(given.model, given.loss, batch, kind, chunk=chunk, blocks=blocks)
        many = vectors(given, count)
        if count > 1 and kind == "ggn" and blocks == "auto":
            operator.blocks.patience = 0.0
            operator @ many
            print(f"{type(given.model).__name__}: {operator.blocks}", flush=True)
        return lambda: operator @ many

    return make


def projected(count: int) -> Call:
    """The GGN as V (V^T v) by two programs, each with a forward pass: projections, and sums of weighed columns."""
    def make(given: Problem) -> Callable[[], Any]:
        onto, sums = (hbp.compile(given.model, given.loss, [name]) for name in ("project_ggn", "column_sum"))
        many, batch = vectors(given, count), (given.inputs, given.target)

        def call() -> Any:
            weights = onto(*batch, directions=many).project_ggn
            return sums(*batch, column_weights=weights).column_sum

        return call

    return make


def forward_over_reverse(count: int) -> Call:
    """The Hessian as the derivative of the gradient along v."""
    def make(given: Problem) -> Callable[[], Any]:
        parameters, slope = _parameters(given), grad(lambda values: _loss(given, values))
        many = vectors(given, count)

        def product(vector: dict[str, Tensor]) -> Any:
            return jvp(slope, (parameters,), (vector,))[1]

        return lambda: vmap(product)(many)

    return make


def double_backward(count: int) -> Call:
    """The GGN without forward mode: J v is the derivative of J^T u in u."""
    def make(given: Problem) -> Callable[[], Any]:
        many = vectors(given, count)

        def call() -> Any:
            values = {name: value.requires_grad_() for name, value in _parameters(given).items()}
            at = list(values.values())
            output = _output(given, values)
            weights = torch.zeros_like(output, requires_grad=True)
            weighted = torch.autograd.grad(output, at, weights, create_graph=True)
            rows = []
            for f in range(count):
                vector = [column[f] for column in many.values()]
                (tangent,) = torch.autograd.grad(weighted, weights, vector, retain_graph=True)
                met = _met(given, output.detach(), tangent)
                rows.append(torch.autograd.grad(output, at, met, retain_graph=True))
            return dict(zip(values, map(torch.stack, zip(*rows, strict=True)), strict=True))

        return call

    return make


def plain_forward(count: int) -> Call:
    """The GGN by torch.func.jvp and vjp."""
    def make(given: Problem) -> Callable[[], Any]:
        parameters, many = _parameters(given), vectors(given, count)

        def call() -> Any:
            output, back = vjp(lambda values: _output(given, values), parameters)

            def product(vector: dict[str, Tensor]) -> Any:
                tangent = jvp(lambda values: _output(given, values), (parameters,), (vector,))[1]
                return back(_met(given, output, tangent))[0]

            return vmap(product)(many)

        return call

    return make


def curvlinops(name: str, count: int) -> Call:
    def make(given: Problem) -> Callable[[], Any] | None:
        try:
            import curvlinops as package
        except ImportError:
            return None
        parameters = list(given.model.parameters())
        with_data: Any = [(given.inputs, given.target)]
        operator = getattr(package, name)(given.model, given.loss, parameters, with_data, check_deterministic=False)
        columns = [column.movedim(0, -1).contiguous() for column in vectors(given, count).values()]
        names = [key for key, _ in given.model.named_parameters()]
        return lambda: {key: column.movedim(-1, 0) for key, column in zip(names, operator @ columns, strict=True)}

    return make


def _parameters(given: Problem) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in given.model.named_parameters()}


def _output(given: Problem, values: Mapping[str, Tensor]) -> Tensor:
    output: Tensor = functional_call(given.model, dict(values), (given.inputs,))
    return output


def _loss(given: Problem, values: Mapping[str, Tensor]) -> Tensor:
    loss: Tensor = given.loss(_output(given, values), given.target)
    return loss


def _met(given: Problem, output: Tensor, tangent: Tensor) -> Tensor:
    """The loss's Hessian times a tangent of the output."""
    found: Tensor = jvp(grad(lambda value: given.loss(value, given.target)), (output,), (tangent,))[1]
    return found


TASKS: Mapping[str, Mapping[str, Call]] = {
    "ggn": {
        "ours": ours("ggn", 1), "two programs": projected(1), "torch.func": plain_forward(1),
        "double backward": double_backward(1),
        "curvlinops": curvlinops("GGNLinearOperator", 1),
    },
    "hessian": {
        "ours": ours("hessian", 1), "forward over reverse": forward_over_reverse(1),
        "curvlinops": curvlinops("HessianLinearOperator", 1),
    },
    f"ggn, {MANY} vectors": {
        "ours": ours("ggn", MANY), "ours, passes": ours("ggn", MANY, MANY, "passes"),
        "ours, one by one": ours("ggn", MANY, 1, "passes"), "two programs": projected(MANY),
        "torch.func": plain_forward(MANY), "double backward": double_backward(MANY),
        "curvlinops": curvlinops("GGNLinearOperator", MANY),
    },
    f"hessian, {MANY} vectors": {
        "ours": ours("hessian", MANY), "ours, one by one": ours("hessian", MANY, 1),
        "forward over reverse": forward_over_reverse(MANY), "curvlinops": curvlinops("HessianLinearOperator", MANY),
    },
}  # fmt: skip


def measure(network: str, samples: int, rounds: int, patience: float, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each task and way."""
    given = problem(network, samples)
    with sdpa_kernel(SDPBackend.MATH):
        calls = {(task, way): make(given) for task in tasks for way, make in TASKS[task].items()}
        runs = {"gradient": gradient(given)}
        differences: dict[str, float] = {}
        for (task, way), call in calls.items():
            if call is not None:
                runs[f"{task}: {way}"] = Run(call, lambda _: {})
                differences[f"{task}: {way}"] = _difference(call, calls[task, "ours"])
        measured = interleaved({name: run for name, run in runs.items() if run is not None}, rounds, 120, patience)
    plain = measured["gradient"].median
    return [{"task": name, "seconds": each.median if each.seconds else math.nan, "failure": each.failure,
             "multiple": each.median / plain if each.seconds else math.nan, "difference": differences.get(name, 0.0)}
            for name, each in measured.items()]


def _difference(call: Callable[[], Any], ours_: Callable[[], Any] | None) -> float:
    """Relative to the largest number at each parameter; infinite where they are not the same."""
    assert ours_ is not None
    try:
        found, expected = call(), ours_()
    except Exception as error:
        print(f"{type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
        return math.inf
    return max(float((found[name] - value).abs().max() / value.abs().max().clamp_min(1e-12))
               for name, value in expected.items())


@click.command()
@click.option("--networks", default=",".join(CASES), show_default=True)
@click.option("--batch", default=0, help="Samples; 0: each network's own number.")
@click.option("--tasks", default=";".join(TASKS), show_default=True)
@click.option("--rounds", default=9, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--patience", default=60.0, show_default=True, help="Seconds to wait for a quiet machine.")
@click.option("--json", "file", type=click.Path(), help="Where the numbers go, too.")
def main(networks: str, batch: int, tasks: str, rounds: int, threads: int, patience: float, file: str | None) -> None:
    """Products with whole curvature matrices."""
    prepare(threads)
    found = {}
    for network in networks.split(","):
        samples = batch or CASES.get(network, 16)
        rows = measure(network, samples, rounds, patience, tasks.split(";"))
        found[f"{network}:{samples}"] = rows
        print(f"\n{find(network).title}:{samples}, {threads} threads")
        for row in rows:
            mark = "" if row["difference"] <= NEAR else f"  differs by {row['difference']:.1e}"
            print(f"{row['task']:40} {1000 * row['seconds']:9.1f} ms {row['multiple']:8.2f} {row['failure']}{mark}")
    if file:
        with open(file, "w", encoding="utf-8") as stream:
            json.dump(found, stream, indent=1)


if __name__ == "__main__":
    sys.exit(main())
