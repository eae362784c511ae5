"""Dicts of tensors by name: directions, weights of columns; and the edges of bins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from hbpcompiler.errors import InputError, InputTypeError, listing
from hbpcompiler.quantities import COLUMN_WEIGHTS

from .argument import Call, Sizes, listed, shown


def check_dict(name: str, what: str) -> Callable[[Any, Call], dict[str, Tensor]]:
    """A check of a dict of tensors in the model's dtype, on the batch's device."""
    def check(value: Any, call: Call) -> dict[str, Tensor]:
        if not isinstance(value, Mapping) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
            raise InputTypeError(f"{name} must be a dict of tensors, {what}, not {type(value).__name__}")
        findings = []
        for key, tensor in value.items():
            if tensor.dtype != call.dtype:
                findings.append(f"that of {key!r} is {tensor.dtype}, and the model {call.dtype}")
            if tensor.device != call.device:
                findings.append(f"that of {key!r} is on {tensor.device}, and the batch on {call.device}")
            if name == COLUMN_WEIGHTS and tensor.dim() == 3 and len(tensor) != call.samples:
                findings.append(f"that of {key!r} is for {len(tensor)} samples, and the batch has {call.samples}")
        if findings:
            raise InputError(listing(f"{name} does not fit:", findings))
        return {key: tensor.detach() for key, tensor in value.items()}

    return check


def fitting(samples_first: bool) -> Callable[[Any, Sizes], list[str]]:
    """What is wrong with the names and shapes of a dict: [N, K, F] for groups, [F, *theta] for parameters."""
    def findings(value: Mapping[str, Tensor], sizes: Sizes) -> list[str]:
        found = [f"there is nothing called {key!r}; there are {listed([*sizes])}" for key in value if key not in sizes]
        for key, lengths in sizes.items():
            wanted = ["N", *lengths, "F"] if samples_first else ["F", *lengths]
            own = None if key not in value else tuple(value[key].shape)
            middle = None if own is None else own[1:-1] if samples_first else own[1:]
            if own is None:
                found.append(f"that of {key!r} is missing, [{listed(wanted)}]")
            elif len(own) != len(wanted) or middle != lengths:
                found.append(f"that of {key!r} has shape {list(own)} instead of [{listed(wanted)}]")
        counts = {tensor.shape[0] for key, tensor in value.items() if key in sizes and tensor.dim()}
        if not samples_first and len(counts) > 1:
            found.append(f"all need the same number of directions F, but there are {listed(sorted(counts))}")
        return found

    return findings


def no_weights_of_columns(samples: int, state: Mapping[str, Tensor], sizes: Sizes, vectors: int) -> dict[str, Tensor]:
    like = next(tensor for tensor in state.values() if tensor.is_floating_point())
    return {group: like.new_zeros((samples, *columns, vectors)) for group, columns in sizes.items()}


def no_directions(samples: int, state: Mapping[str, Tensor], sizes: Sizes, vectors: int) -> dict[str, Tensor]:
    return {name: state[name].new_zeros((vectors, *shape)) for name, shape in sizes.items()}


def check_edges(name: str) -> Callable[[Any, Call], Tensor | None]:
    """A check of the edges of bins, [B + 1] increasing numbers."""
    def check(value: Any, call: Call) -> Tensor | None:
        if value is None:
            return None
        if not isinstance(value, Tensor) or value.dim() != 1 or len(value) < 2 or not bool((value.diff() > 0).all()):
            raise InputError(f"{name} must be a tensor of two or more increasing numbers, the edges of bins, not "
                             f"{shown(value)}")
        return value.detach().to(call.device, call.dtype)

    return check
