"""Parameters that a model reads out of plain containers of its own: to a trace they are constants there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hbpcompiler.errors import ModelError, listing


def refuse_listed(model: nn.Module, constants: Mapping[str, Any]) -> None:
    """Raise ModelError where a constant of the trace is the memory of a trained parameter that a list holds as well."""
    memory = {_memory(tensor) for tensor in constants.values() if isinstance(tensor, Tensor)}
    read = {name for name, parameter in model.named_parameters()
            if parameter.requires_grad and _memory(parameter) in memory}
    if findings := [text for name, text in listed(model) if name in read]:
        raise ModelError(listing("The model reads parameters out of plain containers, where they are constants to a "
                                 "program, without a derivative:", findings, "Read each as its own attribute, or "
                                 "keep it in an nn.ParameterList."))


def listed(model: nn.Module) -> list[tuple[str, str]]:
    """The name of each parameter that a module keeps in a plain container, too, and where that is."""
    names, found = {id(parameter): name for name, parameter in model.named_parameters()}, []
    for path, module in model.named_modules():
        for attribute, kept in vars(module).items():
            if attribute.startswith("_") or not isinstance(kept, list | tuple | dict):
                continue
            place = f"{type(kept).__name__} {attribute!r} of module {path!r} ({type(module).__name__})"
            found += [(names[id(item)], f"{names[id(item)]!r}, out of {place}") for item in pytree.tree_leaves(kept)
                      if id(item) in names]
    return found


def held_elsewhere(model: nn.Module, state: Mapping[str, Tensor], of: Collection[str]) -> list[str]:
    """A sentence for each of these parameters whose memory a trace found as a constant, too: in a closure, say."""
    own = dict(model.named_parameters())
    memory = {_memory(tensor) for name, tensor in state.items() if name not in own}
    return [f"parameter {name!r} is read other than as an attribute of its module (out of a closure, or of what "
            "object.__setattr__ put beside the parameters), where it is a constant to a program, without a derivative: "
            f"read {name}, or write .detach() if none is meant" for name in own
            if name in of and own[name].requires_grad and _memory(own[name]) in memory]


def _memory(tensor: Tensor) -> Any:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device
