"""What a monitor reads of a model, an optimizer and its own options."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.prove.own_step import unchanged
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.with_state import buffers_kept, holding
from hbpcompiler.errors import InputError, OptionError, listing
from hbpcompiler.monitor.table import learning_rate


def shapes_of(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in model.named_parameters() if value.requires_grad}


def is_plain_sgd(optimizer: Any) -> bool:
    if type(optimizer) is not torch.optim.SGD or isinstance(learning_rate(optimizer), dict):
        return False
    return not any(group.get(option) for group in optimizer.param_groups
                   for option in ("momentum", "dampening", "weight_decay", "nesterov", "maximize"))


def described(optimizer: Any) -> dict[str, Any]:
    """Name and plain settings of the first group."""
    if optimizer is None:
        return {}
    groups = getattr(optimizer, "param_groups", [{}])
    plain = {name: value for name, value in groups[0].items() if isinstance(value, bool | int | float | str)
             or (isinstance(value, tuple) and all(isinstance(part, int | float) for part in value))}
    return {"name": type(optimizer).__name__, **plain}


def check_optimizer(optimizer: Any, model: nn.Module) -> None:
    """OptionError for one that moves none of the model's parameters: its learning rates say nothing of the run."""
    if optimizer is None:
        return
    groups = getattr(optimizer, "param_groups", None)
    if groups is None:
        raise OptionError(f"optimizer must be a torch optimizer, with param_groups, or None, not {optimizer!r:.200}")
    moved = {id(parameter) for group in groups for parameter in group.get("params", [])}
    if moved and moved.isdisjoint(id(parameter) for parameter in model.parameters()):
        raise OptionError(f"the optimizer ({type(optimizer).__name__}) holds none of the model's parameters: give "
                          "the one that trains it (made before the model was copied, an optimizer holds the old one's)")


def check_state(state: Any, keys: Collection[str], form: str, model: nn.Module) -> None:
    """InputError for what is no state of a monitor of this model; names and shapes of its parameters must agree."""
    if not isinstance(state, Mapping) or state.get("format") != form or not set(keys) <= state.keys():
        raise InputError("this is not the state of a monitor")
    own = {name: list(value.shape) for name, value in model.named_parameters()}
    wrong = []
    for name, value in {**state["start"], **state["last"]}.items():
        if own.get(name) != list(value.shape):
            there = f"{own[name]} in this model" if name in own else "not in this model"
            wrong.append(f"{name} is {list(value.shape)} in the state, and {there}")
    if wrong:
        raise InputError(listing("this is the state of another model's monitor:", wrong))


def edges_of(name: str, given: Any, model: nn.Module) -> Tensor | None:
    if given is None:
        return None
    like = next(model.parameters())
    try:
        edges = torch.as_tensor(given, device=like.device).to(like.dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"{name} must be increasing numbers, not {given!r}") from error
    if edges.dim() != 1 or len(edges) < 2 or not bool((edges.diff() > 0).all()):
        raise OptionError(f"{name} must be two or more increasing numbers, not {given!r}")
    return edges


def plain(value: Any) -> Any:
    """Numbers in place of tensors and of numpy's; TypeError for what a log does not hold."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        if all(type(part) is int or type(part) is float for part in value):  # those of histograms are long
            return value
        return [plain(part) for part in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, bool | int | float):
        return value
    raise TypeError(f"its value is a {type(value).__name__}, and not a number or a dict of numbers by name")


def changes_buffers(model: nn.Module, loss: Any, given: Batch) -> bool:
    """Whether a forward pass or the loss does; tried on copies of them."""
    args, keywords, target = given.layout.build(given.tensors)
    roots = [root for root in (model, loss) if isinstance(root, nn.Module)]
    own = list(model.parameters())
    with (drawing(Draws.now(given.tensors[0].device)), unchanged(*roots), torch.no_grad(),
          holding(own, [parameter.detach().clone() for parameter in own]), buffers_kept(*roots) as changed):
        output = model(*args, **keywords)
        with suppress(Exception):  # the program that this batch is for says what it is of
            loss(output, target)
        return changed()


def numbers_of(values: Mapping[str, Any], tracked: Collection[str]) -> dict[str, float]:
    """What a user adds. InputError, which lists all, for names that are tracked already and for what is no number."""
    found, wrong = dict[str, float](), list[str]()
    for name, value in values.items():
        if name in tracked:
            wrong.append(f"{name} is what the monitor itself tracks; take another name, such as valid_{name}")
            continue
        try:
            found[name] = float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            wrong.append(f"{name} must be a number, not {value!r}")
    if wrong:
        raise InputError(listing("monitor.add:", wrong))
    return found


def ordinary(batch: Any) -> Any:
    """With copies in place of tensors made under torch.inference_mode, which no derivative can be taken of."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.clone() if tensor.is_inference() else tensor, batch)
