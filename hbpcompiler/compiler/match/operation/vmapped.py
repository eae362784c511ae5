"""A function of one sample, written for all samples by torch.vmap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hbpcompiler.rules.shared.torch_operations import CAST, SCATTER


class NotSampleWiseError(Exception):
    """The operation cannot be carried out sample by sample."""


@contextmanager
def without_fallback() -> Iterator[None]:
    """No loops over samples in place of what torch.vmap cannot write."""
    functorch: Any = torch._C._functorch
    before = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(before)


def written(function: Callable[..., Any], axes: Sequence[int | None], values: Sequence[Tensor],
            table: Mapping[Any, Any]) -> torch.fx.GraphModule:
    """The function of all samples on these values, taken apart as `table` says; `axes` are where values have samples.

    Raises NotSampleWiseError where torch.vmap cannot write it, or not so that its derivatives are right.
    """
    try:
        with without_fallback():
            traced: torch.fx.GraphModule = make_fx(torch.vmap(function, in_dims=tuple(axes)),
                                                   decomposition_table=dict(table), tracing_mode="fake")(*values)
        scatters = traced.graph.find_nodes(op="call_function", target=SCATTER)
        if scatters and all(value.is_floating_point() or value.is_complex() for value in values):
            _Scatters(traced).run(*values)  # of whole numbers, places may be the user's
    except (RuntimeError, ValueError, IndexError) as error:
        raise NotSampleWiseError from error
    if any(isinstance(length, torch.SymInt) for node in traced.graph.nodes
           for length in getattr(node.meta.get("val"), "shape", ())):
        raise NotSampleWiseError  # as many elements as a mask picks
    _inline_numbers(traced.graph)
    return traced


def _inline_numbers(graph: torch.fx.Graph) -> None:
    """x * 2 as it was written: of a sample's value without axes torch.vmap makes a tensor of the number."""
    for node in graph.find_nodes(op="call_function", target=CAST):
        number = node.args[0]
        if not isinstance(number, torch.fx.Node):
            node.replace_all_uses_with(float(number) if node.meta["val"].is_floating_point() else number)
            graph.erase_node(node)


class _Scatters(torch.fx.Interpreter):
    """Runs what torch.vmap wrote. Raises NotSampleWiseError where it puts several values into one place, as of
    select_scatter: they are equal, so that the result is right, but a derivative counts each of them."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        if target is SCATTER:
            _, dim, index, _ = args
            if bool((index.sort(dim).values.diff(dim=dim) == 0).any()):
                raise NotSampleWiseError
        return super().call_function(target, args, kwargs)
