"""The Jacobian of the model's output beside autograd: its product with a random vector is one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.prove.comparison import Comparison, compared
from hbpcompiler.compiler.prove.own_step import OwnStep, Pass
from hbpcompiler.compiler.trace.graph import N

JACOBIAN = "jacobian"
OwnProduct = Callable[[Callable[[Pass], Tensor], int | None], OwnStep]
"""(the number that is differentiated, a run with noise or None) -> the model's own derivative of it."""


def jacobian_lines(matched: Matched, values: Mapping[str, Tensor], samples: int, own: OwnProduct,
                   eps: float) -> list[Comparison]:
    """A line for each parameter that has a Jacobian in `values`, [N, *out, *theta]."""
    end = matched.end
    assert end is not None
    shape = (samples, *end.sample_shape)
    like = next(iter(values.values()))
    vector = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu").to(like)

    def product(pass_: Pass) -> Tensor:
        return (_samples_first(pass_.outputs[_place(matched)], matched).reshape(shape) * vector).sum()

    def right(run: int | None = None) -> dict[tuple[str, str], Tensor]:
        gradients = own(product, run).gradients
        return {(JACOBIAN, name): gradients.get(name, value.new_zeros(value.shape[len(shape) :]))
                for name, value in values.items()}

    found = {(JACOBIAN, name): torch.tensordot(vector, value, len(shape)) for name, value in values.items()}
    return compared(found, right(), eps, right, "a product with it")


def _place(matched: Matched) -> int:
    """Which of the model's outputs it is, or shows."""
    graph = matched.graph
    for place, output in enumerate(graph.outputs):
        name = output.name
        while name != graph.end and name in graph.makers and len(graph.makers[name].tensors) == 1:
            (value,) = graph.makers[name].tensors.values()
            name = value.name
        if name == graph.end:
            return place
    raise AssertionError(f"no output shows {graph.end}")


def _samples_first(output: Tensor, matched: Matched) -> Tensor:
    """The model's output as it came, its axis of samples in front; merged with positions it is there already."""
    own = [axis for axis, length in enumerate(matched.graph.outputs[_place(matched)].shape) if length == N]
    return output.movedim(own[0], 0) if own else output
