"""`Composite`: a few calls of torch as one function, which a generated file defines under a name of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from hbpcompiler.rule.idioms import proxies

PREFIX = "derived_"
"""How the names of composites begin, and no other name in a generated file."""


@dataclass(eq=False, repr=False)
class Composite:
    """Calls of torch, as a graph with a placeholder for each argument and one result.

    On tensors it runs, on proxies it writes a call of itself, on tensors without memory it makes one of its shape.
    """

    name: str
    graph: fx.Graph
    batched: Sequence[bool]
    """Of each argument, whether it begins with the sample axis."""
    shape: Sequence[int]
    """Of the result, for one sample."""
    dtype: torch.dtype
    of_samples: bool
    """Whether the result has a sample axis."""
    about: str = ""
    """For the docstring: what it is, and where it comes from."""
    each: EachSample | None = field(default=None, init=False)

    @property
    def __name__(self) -> str:
        return self.name

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"{self.name}_{id(self)}"  # what torch.fx writes where a call takes it (see `graph_module`)

    def __fx_create_arg__(self, tracer: Any) -> Composite:
        return self

    def __deepcopy__(self, memo: Any) -> Composite:
        return self

    def __call__(self, *tensors: Any) -> Any:
        proxy = next(proxies(tensors), None)
        if proxy is not None:
            return proxy.tracer.create_proxy("call_function", self, tensors, {})
        if any(tensor.is_meta for tensor in tensors):
            return self._on_meta(tensors)
        return self._run(tensors)

    def _on_meta(self, tensors: Sequence[Tensor]) -> Tensor:
        samples = {tensor.shape[0] for tensor, batched in zip(tensors, self.batched, strict=True) if batched}
        lead = (max(samples),) if self.of_samples else ()
        return torch.empty((*lead, *self.shape), dtype=self.dtype, device="meta")

    def _run(self, tensors: Sequence[Tensor]) -> Any:
        given, values = iter(tensors), dict[fx.Node, Any]()
        for node in self.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
                continue
            args: Any = fx.node.map_arg(node.args, values.__getitem__)
            if node.op == "output":
                return args[0]
            kwargs: Any = fx.node.map_arg(node.kwargs, values.__getitem__)
            if node.op == "call_method":
                values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                target: Any = node.target
                values[node] = target(*args, **kwargs)
        raise AssertionError("a graph without an output")


class EachSample(Composite):
    """A composite of which every sample has arguments of its own: also those at `own`, which have no sample axis.

    So derivatives in them are taken sample by sample.
    """

    def __init__(self, whole: Composite, own: Sequence[int], one_by_one: bool) -> None:
        batched = [batched or i in own for i, batched in enumerate(whole.batched)]
        super().__init__(f"{whole.name}_each", whole.graph, batched, whole.shape, whole.dtype, True)
        self.whole, self.one_by_one = whole, one_by_one

    def _run(self, tensors: Sequence[Tensor]) -> Any:
        samples = next(tensor.shape[0] for tensor, own in zip(tensors, self.batched, strict=True) if own)
        if not samples:  # torch can neither stack none nor map every function over none
            return torch.zeros((0, *self.shape), dtype=self.dtype, device=tensors[0].device)
        if self.one_by_one:
            return torch.stack([self._of_one(*(tensor[n] if own else tensor for tensor, own in zip(
                tensors, self.batched, strict=True))) for n in range(samples)])
        axes = tuple(0 if own else None for own in self.batched)
        return torch.func.vmap(self._of_one, axes)(*tensors)

    def _of_one(self, *tensors: Tensor) -> Any:
        """One sample's arguments, each without sample axis."""
        given = [tensor.unsqueeze(0) if batched else tensor
                 for tensor, batched in zip(tensors, self.whole.batched, strict=True)]
        result = self.whole._run(given)
        return result.squeeze(0) if self.whole.of_samples else result


def graph_module(graph: fx.Graph) -> fx.GraphModule:
    """A module that runs the graph: torch.fx writes arguments as their repr, so composites are known by theirs."""
    found = {repr(item): item for node in graph.nodes for item in node.args if isinstance(item, Composite)}
    known = fx.graph._custom_builtins
    known.update({name: fx.graph._CustomBuiltin("", item) for name, item in found.items()})
    try:
        return fx.GraphModule(torch.nn.Module(), graph)
    finally:
        for name in found:
            del known[name]
