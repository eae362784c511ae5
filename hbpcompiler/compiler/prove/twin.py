"""A program for other quantities of the same matched graph, as the graph that it was derived as: no file is written.

A program that gives no gradient is proven by one that gives it alone, and sampled curvature by its exact twin: they
share graph, rules and fused operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hbpcompiler import schemes
from hbpcompiler.compiler.derive.forward import derive
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.plan.plan import plan
from hbpcompiler.options import Options
from hbpcompiler.quantities import Chosen, closings_for
from hbpcompiler.rule.composite import graph_module

GRAD = "grad"
Results = Mapping[str, Mapping[str, Any]]
"""Quantity -> parameter -> tensor, or tensors by field."""


def twin_program(matched: Matched, options: Options, quantities: tuple[str, ...]) -> Callable[..., Results]:
    """(state, *batch) -> these quantities, of all parameters. Raises what planning raises."""
    asked = replace(options, quantities=quantities, curvature_dtype=None, chosen=Chosen())
    closings = schemes.kept(options.curvature, closings_for(quantities))
    program = derive(matched, plan(matched, closings, asked))
    module = graph_module(program.graph)

    def run(state: Mapping[str, Tensor], *batch: Tensor) -> Results:
        with torch.no_grad(), ExitStack() as casts:
            for kind in {"cpu", batch[0].device.type}:  # casts are operations of the graph
                casts.enter_context(torch.autocast(kind, enabled=False))
            beside = program.beside(len(batch[0]), state)
            _, _, results = module(state, *batch, *beside)
        found: dict[str, Any] = results
        return found

    return run
