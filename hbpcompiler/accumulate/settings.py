"""What a model and a loss are beside their tensors: classes, attributes, functions. In words that another process has,
too, if it makes the same ones, so that no total is half of one model and half of another."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.guards.ambient import ambient, device_types
from hbpcompiler.guards.atoms import of_library
from hbpcompiler.system.digest import digest_of

SHOWN = 60
"""Signs of a module's description that a difference shows, before a hash of all of it."""
LOSS = "the loss"
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


WITH_WORDS = (bool, int, float, complex, str, Tensor, tuple, list, dict, set, frozenset, torch.dtype)
"""Kinds of globals that are told apart by what they hold."""


def settings_of(model: nn.Module, loss: Callable[..., Tensor]) -> dict[str, str]:
    """By module, and for the loss: what computes there, with which settings."""
    found = {name or "the model": _short(_module(module)) for name, module in model.named_modules()}
    if isinstance(loss, nn.Module):
        return found | {f"{LOSS} {name}".rstrip(): _short(_module(own)) for name, own in loss.named_modules()}
    return found | {LOSS: _short(in_words(loss))}


def around(model: nn.Module) -> dict[str, str]:
    """What of this thread's state makes another program, where it is not torch's own."""
    kinds = device_types(model)
    dtype, modes, *casts = ambient(kinds)
    found = {f"torch.autocast on {kind}": str(cast) for kind, cast in zip(kinds, casts, strict=True) if cast}
    if modes:
        found["function modes"] = ", ".join(mode.__qualname__ for mode in modes)
    return found if dtype is torch.float32 else {**found, "torch's default dtype": str(dtype)}


def _short(text: str) -> str:
    hashed = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return f"{text[:SHOWN]}{'...' if len(text) > SHOWN else ''} ({hashed})"


def _module(module: nn.Module) -> str:
    attributes = {name: value for name, value in vars(module).items()
                  if not name.startswith("_") and name != "training"}
    attributes |= {name: list(vars(module)[name].values()) for name in HOOKS if vars(module).get(name)}
    forward = type(module).forward
    own = "" if of_library(type(module).__module__) else f", forward={in_words(forward)}"
    return f"{type(module).__qualname__}({_named(attributes)}{own})"


def _named(values: Mapping[str, Any]) -> str:
    texts = {name: in_words(value) for name, value in sorted(values.items())}
    return ", ".join(f"{name}={text}" for name, text in texts.items() if text)


def in_words(value: Any) -> str:
    """"" for what has no words that another process has: objects of other kinds."""
    if value is None or isinstance(value, bool | int | float | complex | str | torch.dtype):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(in_words, value))}]"
    if isinstance(value, Mapping):
        return f"{{{_named({str(key): item for key, item in value.items()})}}}"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(in_words, value)))}}}"
    if isinstance(value, Tensor):
        return digest_of((value,))
    if isinstance(value, functools.partial):
        return f"partial({in_words(value.func)}, {in_words(value.args)}, {_named(value.keywords)})"
    if isinstance(value, MethodType):
        return f"{type(value.__self__).__qualname__}.{in_words(value.__func__)}"
    if isinstance(value, FunctionType):
        return _function(value)
    if isinstance(value, type) or callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return ""


def _function(function: FunctionType) -> str:
    """Its name; and of a user's what its code names and what constants it has, its defaults, what it holds, and the
    numbers, texts, tensors and collections of them among the globals that it names."""
    if of_library(function.__module__ or ""):
        return function.__qualname__
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    held = {name: cell.cell_contents for name, cell in cells if not _is_empty(cell)}
    plain = {name: value for name, value in held.items() if not isinstance(value, nn.Module | FunctionType)}
    everywhere = {name: function.__globals__[name] for name in function.__code__.co_names
                  if isinstance(function.__globals__.get(name), WITH_WORDS)}
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items()]
    return f"{function.__qualname__}({_code(function.__code__)}, {in_words(defaults)}, {_named(everywhere | plain)})"


def _code(code: CodeType) -> str:
    inner = [_code(part) if isinstance(part, CodeType) else in_words(part) for part in code.co_consts]
    return f"{' '.join(code.co_names)}: {' '.join(inner)}"


def _is_empty(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # it raises where nothing is in it
    except ValueError:
        return True
    return False
