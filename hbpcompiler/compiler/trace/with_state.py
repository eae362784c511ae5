"""A module called with other numbers: in its own parameters, or in other tensors in their place.

Its own parameters are seen however a model reaches them: by attributes, in a list, through a closure. So derivatives
are taken in them, and where other numbers are wanted, they hold these meanwhile. Other tensors in their place are what
forward mode, vmap and another dtype need. A model that reaches parameters otherwise does not see those, which the
leaves of autograd's graph tell.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.system.threads import alone

_OF_GRADIENTS, _BEHIND_THEM = "_backward_hooks", "_post_accumulate_grad_hooks"
"""Hooks that change a gradient as it arrives, and those that are called when it is there."""


def call_with_state(module: nn.Module, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor],
                    arguments: Sequence[Any], keywords: Mapping[str, Any] | None = None) -> Any:
    """What the module returns with these tensors in the place of some of its own; afterwards it is what it was.

    torch.func.functional_call leaves other tensors in a module that has several names (a layer used twice in a
    Sequential): it takes back what it put there under the first name for what was there before the second.
    """
    for tensor in parameters.values():
        tensor._is_param = True  # what isinstance(w, nn.Parameter) and ParameterList ask
    marking(module)({**parameters, **buffers})
    with alone(module):
        before = [(each, dict(each._parameters), dict(each._buffers)) for each in module.modules()]
        try:
            return torch.func.functional_call(module, {**parameters, **buffers}, tuple(arguments), dict(keywords or {}))
        finally:
            for each, own, held in before:
                each._parameters.update(own)
                each._buffers.update(held)


def marking(module: nn.Module) -> Callable[[nn.Module | Mapping[str, Tensor]], None]:
    """What gives the plain attributes that its parameters and buffers have now (p.scale = 2.0) to those of these names
    that are in their place, as clone(), deepcopy() and torch.export leave them behind."""
    attributes = {name: dict(vars(tensor)) for name, tensor in _tensors_of(module).items() if vars(tensor)}

    def mark(others: nn.Module | Mapping[str, Tensor]) -> None:
        instead = _tensors_of(others) if isinstance(others, nn.Module) else others
        for name in attributes.keys() & instead.keys():
            for attribute, value in attributes[name].items():
                vars(instead[name]).setdefault(attribute, value)

    return mark


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by each of their names."""
    return dict((*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)))


@contextmanager
def holding(parameters: Collection[Tensor], values: Sequence[Tensor] = (), hooks: bool = False) -> Iterator[None]:
    """Meanwhile these parameters hold such values, if some are given, one for each and of its dtype; they have
    no `grad` and no hooks (but those that change a gradient, if `hooks`).

    Afterwards they are what they were. Graphs of the user's are not disturbed: the memory that they saved comes back,
    and neither `.data = ` nor what forward writes into the values counts as a change of the parameter.
    """
    with _unwatched():
        kept = [(each, each.data, each._version, each.grad) for each in parameters]
        registered = _hooks_of(parameters)
    try:
        with _unwatched():
            for own, _, kind in registered:
                if not (hooks and kind == _OF_GRADIENTS):
                    own.clear()
            for each in parameters:
                each.grad = None
            for each, value in zip(parameters, values, strict=bool(values)):
                each.data = value
        yield
    finally:
        with _unwatched():
            for each, data, version, _ in kept if values else ():
                each.data = data
                if each._version != version:
                    torch._C._autograd._unsafe_set_version_counter((each,), (version,))
            for own, _, _ in (*_hooks_of(parameters), *registered):  # forward may have registered some
                own.clear()
            for own, before, _ in registered:
                own.update(before)
            for each, _, _, gradient in kept:
                each.grad = gradient


def loss_at(loss: Callable[..., Tensor], output: Any, target: Any) -> Any:
    """What a loss returns. One that is a module is afterwards what it was, so that each call meets what the user's
    call would."""
    if not isinstance(loss, nn.Module):
        return loss(output, target)
    with alone(loss), attributes_kept(list(loss.modules())), buffers_kept(loss):
        return loss(output, target)


@contextmanager
def buffers_kept(*roots: nn.Module) -> Iterator[Callable[[], bool]]:
    """Meanwhile these modules have copies of their buffers; whether any have other numbers by now is what it gives."""
    before = [(each, dict(each._buffers)) for root in roots for each in root.modules()]
    copies: dict[int, Tensor] = {}  # one for a buffer of several names
    try:
        for each, held in before:
            for name, value in held.items():
                if value is not None:
                    each._buffers[name] = copies.setdefault(id(value), value.detach().clone())
                    vars(each._buffers[name]).update(vars(value))
        yield lambda: not all(_are_equal(each._buffers, held) for each, held in before)
    finally:
        for each, held in before:
            each._buffers.clear()
            each._buffers.update(held)


def _are_equal(some: Mapping[str, Tensor | None], others: Mapping[str, Tensor | None]) -> bool:
    if some.keys() != others.keys():
        return False
    for name, one in some.items():
        other = others[name]
        if one is None or other is None:
            if one is not other:
                return False
        elif (one.dtype, one.device) != (other.dtype, other.device) or not torch.equal(one, other):
            return False
    return True


@contextmanager
def attributes_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Afterwards these have the attributes that they had."""
    before = [(module, dict(vars(module))) for module in modules]
    try:
        yield
    finally:
        for module, attributes in before:
            own = vars(module)
            for name in [name for name in own if name not in attributes]:
                del own[name]
            own.update(attributes)


def in_one_piece(module: nn.Module, held: Collection[Tensor]) -> None:
    """cuDNN wants a recurrent layer's weights side by side, which such values are not; nothing happens elsewhere."""
    own = {id(each) for each in held}
    for each in module.modules():
        if isinstance(each, nn.RNNBase) and own.issuperset(map(id, each._flat_weights)):
            each.flatten_parameters()


def _hooks_of(parameters: Collection[Tensor]) -> list[tuple[dict[Any, Any], dict[Any, Any], str]]:
    """torch's own dicts, which its engine holds, and what is in them."""
    found = []
    for each in parameters:
        for kind in (_OF_GRADIENTS, _BEHIND_THEM):
            own = getattr(each, kind)
            if own:
                found.append((own, dict(own), kind))
    return found


def _unwatched() -> AbstractContextManager[Any]:
    """Modes of torch's that watch a pass are not called for what is done to parameters around it: that takes longer."""
    return torch._C.DisableTorchFunction()


@contextmanager
def derivatives_in(chosen: Collection[Tensor], of: Collection[Tensor]) -> Iterator[None]:
    """Meanwhile derivatives go to these parameters and to no others of those."""
    asked = {id(each) for each in chosen}
    with _unwatched():
        changed = [each for each in of if each.requires_grad != (id(each) in asked)]
    try:
        with _unwatched():
            for each in changed:
                each.requires_grad = id(each) in asked
        yield
    finally:
        with _unwatched():
            for each in changed:
                each.requires_grad = id(each) not in asked


@contextmanager
def ordinary_mode() -> Iterator[None]:
    """Gradients are on, whatever the call came from."""
    outside = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    with outside, torch.enable_grad():
        yield


def leaves_of(values: Iterable[Tensor]) -> list[Tensor]:
    """What derivatives of these values can be taken in, each once."""
    waiting: list[Any] = [value.grad_fn for value in values]
    seen: set[Any] = {None}
    found: dict[int, Tensor] = {id(value): value for value in values if value.requires_grad and value.grad_fn is None}
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        waiting += [above for above, _ in node.next_functions]
    return list(found.values())
