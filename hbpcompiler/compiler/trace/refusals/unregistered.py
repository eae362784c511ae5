"""Tensors that torch would train, and a model does not know of: those of modules in a plain list, say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree


def unregistered(model: nn.Module, outputs: Iterable[Tensor], known: Iterable[Tensor]) -> str:
    """What is said of tensors that outputs of a model have derivatives in, and that are neither its parameters nor
    `known`; "" if there are none."""
    registered = {id(tensor) for tensor in (*model.parameters(), *known)}
    strangers = {id(leaf): leaf for leaf in _leaves(outputs) if id(leaf) not in registered}
    if not strangers:
        return ""
    names = {id(tensor): name for name, tensor in _held(model)}
    found = [names.get(each, f"a tensor {list(leaf.shape)}") for each, leaf in strangers.items()]
    return (f"forward reads tensors that require a gradient and are no parameters of the model: {', '.join(found)}. "
            "To a program they are constants, which no result has. Keep modules in an nn.ModuleList or nn.ModuleDict, "
            "tensors in an nn.Parameter of their module; write .detach(), or requires_grad_(False), if constants are "
            "meant")


def _leaves(values: Iterable[Tensor]) -> Iterator[Tensor]:
    """Those that a backward pass from there would give a gradient."""
    met: set[Any] = set()
    ways = [value.grad_fn for value in values]
    while ways:
        node = ways.pop()
        if node is None or node in met:
            continue
        met.add(node)
        leaf = getattr(node, "variable", None)  # of the nodes that accumulate gradients
        if isinstance(leaf, Tensor):
            yield leaf
        ways += [before for before, _ in node.next_functions]


def _held(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors, and those of modules, in modules' own attributes and plain containers there, by where they are."""
    for path, module in model.named_modules():
        start = f"{path}." if path else ""
        for attribute, kept in vars(module).items():
            if attribute.startswith("_"):
                continue
            for steps, item in pytree.tree_flatten_with_path(kept)[0]:
                place = f"{start}{attribute}{pytree.keystr(steps)}"
                if isinstance(item, Tensor):
                    yield place, item
                elif isinstance(item, nn.Module):
                    yield from ((f"{place}.{name}", parameter) for name, parameter in item.named_parameters())
