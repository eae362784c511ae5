"""A program for other quantities of the same matched graph, as the graph that it was derived as: no file is written.

A program that gives no gradient is proven by one that gives it alone, and sampled curvature by its exact twin: they
share graph, rules and fused operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from hbpcompiler import schemes
from hbpcompiler.arguments import rows_of
from hbpcompiler.compiler.derive.forward import derive
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.plan.plan import plan
from hbpcompiler.options import Options
from hbpcompiler.patterns import exact
from hbpcompiler.quantities import Chosen, Closings
from hbpcompiler.rule.composite import graph_module
from hbpcompiler.rules.shared.torch_operations import RESHAPE, VIEWS

GRAD = "grad"
TWINS: Mapping[str, str] = {"diag_ggn_mc": "diag_ggn", "sqrt_ggn_mc": "diag_ggn", "diag_h_mc": "diag_h",
                            "diag_h_mc_all": "diag_h"}
"""Sampled quantity -> what it is in expectation."""
Results = Mapping[str, Mapping[str, Any]]
"""Quantity -> parameter -> tensor, or tensors by field."""


def twin_program(matched: Matched, options: Options, quantities: tuple[str, ...],
                 names: Mapping[str, Sequence[str]] = MappingProxyType({})) -> Callable[..., Results]:
    """(state, *batch, **call arguments) -> these quantities. Raises what planning raises.

    Of all parameters, in the same groups; `names` says of which ones, by quantity.
    """
    chosen = Chosen(tuple((name, exact(own, own)) for name, own in names.items()), options.chosen.groups)
    asked = replace(options, quantities=quantities, curvature_dtype=None, chosen=chosen)
    closings = Closings(quantities, chosen, partial(schemes.kept, options.curvature))
    program = derive(matched, plan(matched, closings, asked))
    for node in program.graph.nodes:
        if node.target in VIEWS:  # the graph leaves out copies that only move memory
            node.target = RESHAPE
    module = graph_module(program.graph)

    def run(state: Mapping[str, Tensor], *batch: Tensor, **given: Any) -> Results:
        with torch.no_grad(), ExitStack() as casts:
            for kind in {"cpu", batch[0].device.type}:  # casts are operations of the graph
                casts.enter_context(torch.autocast(kind, enabled=False))
            own = {name: given.get(name, value) for name, value in program.beside(len(batch[0]), state).items()}
            _, _, results = module(state, *batch, *rows_of(own, len(batch[0])).values())
        found: dict[str, Any] = results
        return found

    return run
